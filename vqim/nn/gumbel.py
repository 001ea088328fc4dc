"""Gumbel noise. Added to logits, it makes the position of the largest sum a draw from their softmax."""
import torch
from torch import Tensor


def gumbel_noise(uniform: Tensor) -> Tensor:
    """Draws from the standard Gumbel distribution, made from draws from U[0, 1): float32, of the same shape."""
    # A draw of exactly 0 would give infinite noise; 1e-20 replaces it.
    return -torch.log(-torch.log(uniform.clamp_min(1e-20)))
