"""Random keys: int32 scalars from which every random draw in a step is derived.

CPU, GPU and XLA do the same arithmetic, so that a key depends only on (seed, step, purpose, layer). A resumed run
therefore draws what it would have drawn without the interruption. Nothing here reads a value back from a device.
"""
import zlib

import torch
from torch import Tensor


def fold_key(key: Tensor, data: "str | int | Tensor") -> Tensor:
    """A new int32 key that depends on both. Words enter as their CRC-32, so that keys survive restarts."""
    if isinstance(data, str):
        data = zlib.crc32(data.encode())
    if isinstance(data, int):
        data = (data + 2**31) % 2**32 - 2**31
    return mix_bits(mix_bits(key) ^ data)


def step_key(seed: Tensor, step: Tensor, purpose: str) -> Tensor:
    """The key for one purpose in one training step, from int32 scalars. A resumed run gets the same key."""
    return fold_key(fold_key(seed, purpose), step)


def mix_bits(x: Tensor) -> Tensor:
    """A bijection of int32 that scatters its input: Chris Wellons' lowbias32, in wrapping int32 arithmetic.

    torch_xla 2.9 shifts a negative int32 right by a division that rounds towards zero; with the low bits cleared
    first, that is the same as a shift.
    """
    x = x + 0x3C6EF372  # so that zero is no fixed point
    x = (x ^ ((x & -0x10000) >> 16 & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x & -0x8000) >> 15 & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ ((x & -0x10000) >> 16 & 0xFFFF)


def uniform_rows(keys_B: Tensor, num_columns: int, first: int = 0) -> Tensor:
    """float32 draws from U[0, 1), [B, num_columns]: each row from its own key, the same on every runtime.

    With `first`, the columns of a longer row from there on.
    """
    columns_C = torch.arange(first, first + num_columns, dtype=torch.int32, device=keys_B.device)
    return to_uniform(mix_bits(mix_bits(keys_B)[:, None] ^ mix_bits(columns_C)))


def to_uniform(bits: Tensor) -> Tensor:
    """int32 of random bits to float32 in U[0, 1), from 24 of the upper bits, which float32 holds exactly."""
    return ((bits & 0x7FFFFFFF) >> 7).float() * 2.0**-24  # masked first, so that a positive number is shifted
