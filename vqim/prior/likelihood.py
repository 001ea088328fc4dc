"""What priors measure that give each code a probability: bits, and the share of likeliest codes.

    B batch, S codes of an image, V vocabulary
"""
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

NATS_PER_BIT = math.log(2)


def code_losses(logits_BSV: Tensor, codes_BS: Tensor) -> Tensor:
    """-log P of each code, float32 [B, S], in nats.

    In this form, float32 logits exist only inside reductions. F.cross_entropy keeps another array for the backward
    pass. With 8 x 1024 tokens and 8192 codes, a TPU needs 257 MiB for it and the bfloat16 logits, but 128 MiB in
    this form (TPU compiler, v4, libtpu 0.0.23).
    """
    logits_BSV = logits_BSV.float()
    codes_V = torch.arange(logits_BSV.shape[-1], device=codes_BS.device)
    here_BSV = codes_V == codes_BS[..., None]
    return logits_BSV.logsumexp(-1) - torch.where(here_BSV, logits_BSV, 0.0).sum(-1)


def mean_loss(losses_BS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean of losses over codes, in nats, and metrics, where it is also in bits."""
    loss = losses_BS.mean()
    return loss, {"loss/bits_per_token": loss.detach() / NATS_PER_BIT}


def likelihood_measures(logits_BSV: Tensor, codes_BS: Tensor) -> dict[str, Tensor]:
    """Each image's mean bits per code, and the share of its codes that are the likeliest ones: float32 [B]."""
    logits_BSV = logits_BSV.float()
    nats_BS = F.cross_entropy(rearrange(logits_BSV, "b s v -> b v s"), codes_BS, reduction="none")
    return {"bits_per_token": nats_BS.mean(1) / NATS_PER_BIT,
            "token_accuracy": (logits_BSV.argmax(-1) == codes_BS).float().mean(1)}
