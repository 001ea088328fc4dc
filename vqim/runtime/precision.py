"""Matrix products with float32 precision on devices that multiply in bfloat16.

    D dimensions that are summed over; ... any leading dimensions
"""
import torch
from torch import Tensor

_SCALES = (2.0**8, 2.0**17, 2.0**26)
"""The scales of the three parts: each rounds the rest to whole numbers up to 256, which bfloat16 holds exactly."""


def split_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with nearly float32 accuracy, by one matrix product of numbers that bfloat16 can hold.

    A TPU multiplies float32 matrices in one pass of bfloat16 products, summed in float32, unless the whole process is
    set to more: torch_xla 2.9 has no precision for a single product. Such a pass is exact where bfloat16 can hold the
    factors. So each factor is written as high + middle + low, which gives nine products. Six of them count (middle @
    low is below float32's rounding, and precision 'highest' leaves it out too). They become one product with six times
    the inner dimension, since high @ high + high @ middle + ... is the product of the concatenated parts.

    The TPU compiler's estimate for the nearest of 8192 codes of 32 numbers to 2048 latents (v4, libtpu 0.0.23): 92
    thousand cycles in one rounded pass, 322 this way, 373 with the whole process at 'highest'.

    Parts are whole numbers divided by a power of two. Conversion to bfloat16 and back would be simpler code, but XLA
    may remove a pair of conversions (`xla_allow_excess_precision`), and then middle and low would be lost.

    Args:
      a: float32 [..., N, D].
      b: float32 [..., D, M]. Each row of `a` and column of `b` is exact relative to its largest entry.

    Returns:
      float32 [..., N, M], without gradient, since rounding has none.
    """
    a_size = a.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    b_size = b.abs().amax(-2, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    a_high, a_middle, a_low = _parts(a / a_size)
    b_high, b_middle, b_low = _parts(b / b_size)
    left = torch.cat([a_middle, a_low, a_high, a_middle, a_high, a_high], -1)
    right = torch.cat([b_middle, b_high, b_low, b_high, b_middle, b_high], -2)
    return torch.matmul(left, right) * a_size * b_size


def _parts(x: Tensor) -> list[Tensor]:
    """Numbers from -1 to 1 as a sum of three parts; the error is at most 2^-27."""
    parts = []
    for scale in _SCALES:
        part = torch.round(x * scale) / scale
        parts.append(part)
        x = x - part
    return parts
