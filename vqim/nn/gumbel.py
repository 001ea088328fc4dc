"""Gumbel noise: where it is added to logits, the largest sum is a draw from their softmax."""
import torch
from torch import Tensor


def gumbel_noise(uniform: Tensor) -> Tensor:
    """Draws from the standard Gumbel distribution, made of draws from U[0, 1): float32, of the same shape."""
    # A draw of exactly 0 would be infinitely unlikely noise; 1e-20 stands in for it.
    return -torch.log(-torch.log(uniform.clamp_min(1e-20)))
