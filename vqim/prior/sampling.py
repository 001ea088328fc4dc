"""Sampling from logits: pure functions of arrays, random draws passed in.

    B batch, V vocabulary
"""
import torch
from torch import Tensor

from vqim.nn.gumbel import gumbel_noise


def sample_logits(
    logits_BV: Tensor, uniform_BV: Tensor, *,
    temperature: float | Tensor = 1.0, top_k: int | None = None, top_p: float | Tensor | None = None,
) -> Tensor:
    """Draws one code a row from softmax(logits / temperature), by the Gumbel-max trick.

    Args:
      logits_BV: float32 logits.
      uniform_BV: independent draws from U[0, 1).
      temperature: the number 0 takes the likeliest code; a scalar tensor must be above 0.
      top_k: keeps only the k likeliest codes (and any equal to the last of them); None keeps all, as in ViT-VQGAN.
      top_p: keeps only the likeliest codes whose probabilities, after temperature and top_k, first sum to p; None keeps
        all.

    Returns:
      int64 [B].
    """
    if not isinstance(temperature, Tensor) and temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV / temperature
    if top_k is not None:
        logits_BV = keep_top_k(logits_BV, top_k)
    if top_p is not None:
        logits_BV = keep_top_p(logits_BV, top_p)
    return (logits_BV + gumbel_noise(uniform_BV)).argmax(-1)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Sets all but the k largest logits in each row to -inf."""
    smallest_B1 = torch.topk(logits_BV, min(k, logits_BV.shape[-1]), dim=-1).values[..., -1:]
    return logits_BV.masked_fill(logits_BV < smallest_B1, -torch.inf)


def keep_top_p(logits_BV: Tensor, p: float | Tensor) -> Tensor:
    """Sets logits outside the nucleus to -inf: the smallest set of likeliest codes with a probability of at least p."""
    sorted_BV, order_BV = logits_BV.sort(-1, descending=True)
    probabilities_BV = sorted_BV.softmax(-1)
    before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
    outside_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV >= p)
    return logits_BV.masked_fill(outside_BV, -torch.inf)


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises ValueError unless the settings are in their ranges."""
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1 or None, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1] or None, got {top_p}")
