"""What the XLA runtime does in its own way: layers, attention, random bits.

    B batch, T queries, S keys, N heads, H head dimension
"""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vqim.runtime.plain import loop_scan, plain_attention
from vqim.state.random import mix_bits


class XlaKernels:
    """A loop over layers, plain attention, and random bits by hashing positions, which no mesh can change."""

    def scan(self, body: Callable[[Tensor, Any], tuple[Tensor, Any]], carry: Tensor, inputs: Any) -> tuple[Tensor, Any]:
        """Unrolls the layers into the program."""
        return loop_scan(body, carry, inputs)

    def attention(self, q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, *, causal: bool) -> Tensor:
        """Plain products."""
        return plain_attention(q_BNTH, k_BNSH, v_BNSH, causal=causal)

    def keep_mask(self, key: Tensor, rate: float, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Compares 31 hashed bits with the rate."""
        return self._bits(key, shape) >= round(rate * 2**31)

    def uniform(self, key: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The upper 24 of 31 hashed bits: float32 holds them exactly."""
        return (self._bits(key, shape) >> 7).float() * 2.0**-24

    def _bits(self, key: Tensor, shape: tuple[int, ...]) -> Tensor:
        """31 random bits for each position, as int32 of at least 0.

        The first dimension has keys of its own, so that no batch is too large for int32 positions.
        """
        position = torch.zeros((), dtype=torch.int32, device=key.device)
        stride = 1
        for axis in reversed(range(1, len(shape))):
            position = position + _along(axis, shape, key.device) * stride
            stride = stride * shape[axis]
        if stride > 2**31:
            raise ValueError(f"random bits need at most 2^31 positions in all dimensions but the first, got {shape}")
        row_keys = mix_bits(mix_bits(_along(0, shape, key.device)) ^ key) if shape else key
        return mix_bits(mix_bits(position) ^ row_keys) & 0x7FFFFFFF


def _along(axis: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """0, 1, 2 ... along one dimension of `shape`; the others have size 1."""
    numbers = torch.arange(shape[axis], dtype=torch.int32, device=device)
    return numbers.reshape([-1 if i == axis else 1 for i in range(len(shape))])
