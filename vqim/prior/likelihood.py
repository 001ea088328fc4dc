"""What priors measure that give each code a probability: bits, and the share of likeliest codes.

    B batch, S codes of an image, V vocabulary
"""
import math

from torch import Tensor

from vqim.contracts.context import Kernels

NATS_PER_BIT = math.log(2)


def mean_loss(losses_BS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean of losses over codes, in nats, and metrics, where it is also in bits."""
    loss = losses_BS.mean()
    return loss, {"loss/bits_per_token": loss.detach() / NATS_PER_BIT}


def likelihood_measures(logits_BSV: Tensor, codes_BS: Tensor, kernels: Kernels) -> dict[str, Tensor]:
    """Each image's mean bits per code, and the share of its codes that are the likeliest ones: float32 [B]."""
    nats_BS = kernels.cross_entropy(logits_BSV, codes_BS)
    return {"bits_per_token": nats_BS.mean(1) / NATS_PER_BIT,
            "token_accuracy": (logits_BSV.float().argmax(-1) == codes_BS).float().mean(1)}
