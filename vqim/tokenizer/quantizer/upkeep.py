"""Two ways to keep a codebook in use: codes follow the means of their latents, and unused codes restart.

ViT-VQGAN has neither: it trains its codebook only by gradients. The first is van den Oord et al. (2017), appendix
A.1; the second is what public VQ-VAEs do with dead codes (jukebox, vector-quantize-pytorch).

    P latents of a (micro-)batch, K codes a position, Z code dimension, V vocabulary
"""
from collections.abc import Mapping

import torch
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.learning import Advanced

USE_DECAY = 0.95
"""Decay of the codes' running use if gradients train the codebook: about the last twenty batches."""


def check_upkeep(ema_decay: float | None, restart_below: float) -> None:
    """Raises ValueError unless the settings are in their ranges."""
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be None, or at least 0 and less than 1, got {ema_decay}")
    if not 0 <= restart_below < 1:
        raise ValueError(f"restart_below must be at least 0 and less than 1 (the mean use of a code), got "
                         f"{restart_below}")


def upkeep_sums(z_PZ: Tensor, indices_P: Tensor, vocabulary: int, context: Context) -> dict[str, Tensor]:
    """Sums that describe how a whole batch uses the codes, for any split into micro-batches and devices.

    Args:
      z_PZ: the latents that were looked up, float32, without gradient.
      indices_P: the codes of these latents.
      vocabulary: V, the number of codes.
      context: the quantizer's context in training.

    Returns:
      `counts` [V]; `vectors` [V, Z], the sums of each code's latents; `picks` [V, Z], for each code one latent of the
      whole batch. Every micro-batch draws the same places, and fills in the latents that it holds.
    """
    return channel_sums(z_PZ[:, None], indices_P[:, None], vocabulary, context)


def channel_sums(z_PKZ: Tensor, indices_PK: Tensor, vocabulary: int, context: Context) -> dict[str, Tensor]:
    """`upkeep_sums` of K latents at each position that share a codebook, a channel at a time to save memory."""
    kernels = context.kernels
    counts_V, vectors_VZ = torch.zeros((), device=z_PKZ.device), torch.zeros((), device=z_PKZ.device)
    for z_PZ, indices_P in zip(z_PKZ.unbind(1), indices_PK.unbind(1), strict=True):
        more_V, more_VZ = kernels.sums_by_code(z_PZ, indices_P, vocabulary)
        counts_V, vectors_VZ = counts_V + more_V, vectors_VZ + more_VZ
    z_PZ = z_PKZ.flatten(0, 1)
    number, parts = context.micro_batch
    key = context.step_draw_key("restart")
    assert key is not None
    places_V = (kernels.uniform(key, (vocabulary,), z_PZ.device) * (parts * len(z_PZ))).long()
    own_V = places_V - number * len(z_PZ)
    is_here_V = (own_V >= 0) & (own_V < len(z_PZ))
    picks_VZ = z_PZ.index_select(0, own_V.clamp(0, len(z_PZ) - 1))
    return {"counts": counts_V, "vectors": vectors_VZ, "picks": torch.where(is_here_V[:, None], picks_VZ, 0.0)}


def advance_codebook(
    codebook_VZ: Tensor, use_V: Tensor, sums: Mapping[str, Tensor], ema_decay: float | None, restart_below: float,
    *, keep_lengths: bool = True,
) -> Advanced:
    """New `codebook_VZ` and `use_V`, and metrics about them.

    Use is relative: a code that is chosen as often as the mean code has use 1. With `ema_decay` d, a code becomes the
    running mean of the latents that chose it: n' = d n + (1 - d) count, e' = (d n e + (1 - d) sum) / n'; one that none
    chose stays where it is, however small its use. A code whose running use falls below `restart_below` is replaced by
    its picked latent, and its use becomes 1. A codebook without `ema_decay` of which only directions count keeps its
    lengths: with `keep_lengths` the latent is scaled to the code's old length.
    """
    vocabulary, decay = len(use_V), USE_DECAY if ema_decay is None else ema_decay
    scale = vocabulary / sums["counts"].sum()
    new_use_V = decay * use_V + (1 - decay) * scale * sums["counts"]
    new_VZ = codebook_VZ
    if ema_decay is not None:
        total_VZ = decay * use_V[:, None] * codebook_VZ + (1 - decay) * scale * sums["vectors"]
        mean_VZ = total_VZ / new_use_V.clamp_min(1e-6)[:, None]
        new_VZ = torch.where(sums["counts"][:, None] > 0, mean_VZ, codebook_VZ)
    dead_V = new_use_V < restart_below
    if ema_decay is None and keep_lengths:
        lengths_V1 = torch.linalg.vector_norm(codebook_VZ, dim=-1, keepdim=True)
        picks_VZ = sums["picks"] * lengths_V1 / torch.linalg.vector_norm(
            sums["picks"], dim=-1, keepdim=True).clamp_min(1e-6)
    else:
        picks_VZ = sums["picks"]
    metrics = {"restarted": dead_V.float().sum(), "dead": (new_use_V < 0.01).float().mean()}
    return Advanced({"codebook_VZ": torch.where(dead_V[:, None], picks_VZ, new_VZ),
                     "use_V": torch.where(dead_V, 1.0, new_use_V)}, metrics)
