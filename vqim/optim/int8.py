"""Arrays kept as int8 with float32 scales: symmetric, zero stays zero, values -127 to 127 (-128 is unused).

A scale is shared by all elements along the dimensions `dims`; the array of scales has the other dimensions.
"""
from collections.abc import Sequence

import torch
from torch import Tensor

from vqim.state.random import fold_key

LARGEST = 127
_TINY = torch.finfo(torch.float32).tiny


def quantise(x: Tensor, dims: Sequence[int], noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rounds `x` to int8, scaled so that the largest magnitude along `dims` becomes 127.

    Args:
      x: float32 array; finite, since int8 has no NaN.
      dims: dimensions that share a scale, counted from 0.
      noise: None rounds to the nearest level, halves to even. Uniform draws from [0, 1) with the shape of `x`
        round up with the probability that makes the expected result equal to `x`.

    Returns:
      int8 values with the shape of `x`, and float32 scales with its shape without `dims`. Where the largest magnitude
      is below 127 times the smallest normal float32, both are zero.
    """
    scale = x.abs().amax(tuple(dims)) * (1 / LARGEST)
    scale = torch.where(scale >= _TINY, scale, 0.0)  # a subnormal scale may be flushed to zero
    levels = x * expand(torch.where(scale > 0, 1 / scale, 0.0), dims)
    levels = levels.round() if noise is None else (levels + noise).floor()
    return levels.clamp(-LARGEST, LARGEST).to(torch.int8), scale


def dequantise(q: Tensor, scale: Tensor, dims: Sequence[int]) -> Tensor:
    """The float32 values of a quantised array; quantising them again gives the same int8 values."""
    return q.to(torch.float32).mul_(expand(scale, dims))


def expand(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Inserts dimensions of size 1 where a reduction over `dims` removed them."""
    for dim in sorted(dims):
        x = x.unsqueeze(dim)
    return x


def rounding_noise(key: Tensor, shape: Sequence[int]) -> Tensor:
    """float32 draws from U[0, 1), each a hash of (key, its position): the same on any runtime and mesh.

    Args:
      key: int32 scalar.
      shape: the shape of the result, with at most 2^31 elements.
    """
    positions = torch.arange(torch.Size(shape).numel(), dtype=torch.int32, device=key.device)
    bits = fold_key(key, positions).reshape(tuple(shape))
    # Low bits are cleared first: torch_xla shifts right by dividing, which rounds negative numbers towards zero.
    top = ((bits & -0x100) >> 8) & 0xFFFFFF
    return top.to(torch.float32) * 2.0**-24
