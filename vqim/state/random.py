"""Keys of randomness: int32 scalars from which every random draw of a step is derived.

The same arithmetic on CPU, GPU and XLA, so that a key depends on (seed, step, purpose, layer) alone: a resumed
run draws what it would have drawn. Nothing here reads a value back from a device.
"""
import zlib

import torch
from torch import Tensor


def fold_key(key: Tensor, data: "str | int | Tensor") -> Tensor:
    """A new int32 key that depends on both; words enter by their CRC-32, so that keys survive restarts."""
    if isinstance(data, str):
        data = zlib.crc32(data.encode())
    if isinstance(data, int):
        data = (data + 2**31) % 2**32 - 2**31
    return mix_bits(mix_bits(key) ^ data)


def step_key(seed: Tensor, step: Tensor, purpose: str) -> Tensor:
    """The key of one purpose in one training step, from int32 scalars: what a resumed run draws again."""
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


def uniform_rows(keys_B: Tensor, num_columns: int) -> Tensor:
    """float32 draws from U[0, 1), [B, num_columns]: each row from its own key, the same on every runtime."""
    columns_C = torch.arange(num_columns, dtype=torch.int32, device=keys_B.device)
    bits_BC = mix_bits(mix_bits(keys_B)[:, None] ^ mix_bits(columns_C))
    # 24 of the upper bits, which float32 holds exactly; masked first, so that the shift is one of a positive number.
    return ((bits_BC & 0x7FFFFFFF) >> 7).float() * 2.0**-24
