"""The XLA runtime's kernels: layers, attention, random bits.

    B batch, T queries, S keys, N heads, H head dimension
"""
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch_xla
import torch_xla.core.xla_model as xm
import torch_xla.core.xla_op_registry as xor
import torch_xla.distributed.spmd as xs
from torch import Tensor

from vqim.runtime.flash import allocate, flash_attention
from vqim.runtime.flash_blocks import choose_blocks
from vqim.runtime.partition import PartitionSpec
from vqim.runtime.plain import loop_scan, plain_attention, plain_cached_attention, plain_linear, sums_by_code
from vqim.runtime.precision import split_matmul
from vqim.runtime.settings import XlaSettings
from vqim.runtime.xla_gradients import GeluDropout, Linear
from vqim.runtime.xla_scan import xla_scan
from vqim.state.random import mix_bits, to_uniform

BATCH_AXES = ("data", "fsdp")
"""The mesh axes over which a batch is cut."""

HEADS = (BATCH_AXES, None, "tensor")
"""How queries, keys and values with heads side by side, [B, T, N * H], are cut."""

WHOLE_BYTES = 8 * 2**30
"""The most that kernels may take on every device while tokens are drawn; larger ones are gathered in every step."""

LONG_SEQUENCE = 256
"""The sequence length from which on 'auto' uses flash attention."""


def batch_spec(num_dims: int, axis: int = 0) -> PartitionSpec:
    """How arrays with a batch's images along one dimension are cut."""
    return tuple(BATCH_AXES if dim == axis else None for dim in range(num_dims))


class XlaKernels:
    """Layers as one loop, flash attention, and random bits from hashed positions, which are the same on any mesh.

    Args:
      mesh: torch_xla's mesh, with the axes data, fsdp and tensor.
      settings: the settings of the runtime.
      tpu: whether programs are for TPUs; Pallas kernels run only there.
    """

    def __init__(self, mesh: xs.Mesh, settings: XlaSettings, *, tpu: bool = False):
        if settings.attention == "flash" and not tpu:
            raise ValueError("attention must be 'auto' or 'plain' where there is no TPU, got 'flash'")
        if tpu and settings.attention != "plain" and not importlib.util.find_spec("jax"):
            raise ValueError(
                f"attention = {settings.attention!r} needs jax, which vqim[tpu] brings; 'plain' does without it")
        self._mesh, self._attention = mesh, settings.attention
        self._remat, self._unroll = settings.remat, settings.unroll
        self._pallas = tpu and settings.attention != "plain"
        self._gradient_dtype = getattr(torch, settings.gradient_dtype) if settings.gradient_dtype else None
        self._splits_products = tpu and settings.matmul_precision != "highest"

    def scan(self, body: Callable[[Tensor, Any], tuple[Tensor, Any]], carry: Tensor, inputs: Any) -> tuple[Tensor, Any]:
        """A loop in the program, or its steps unrolled; the carry stays cut over the devices that share a batch."""
        if self._unroll:
            def step(carry: Tensor, part: Any) -> tuple[Tensor, Any]:
                carry, output = body(carry, part)
                self._place(carry)
                return carry, output

            return loop_scan(step, carry, inputs, "none")
        return xla_scan(body, carry, inputs, remat=self._remat, place=self._place,
                        allocate=self._allocate if self._pallas and self._mesh.shape()["tensor"] == 1 else None)

    def attention(self, q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, *, causal: bool) -> Tensor:
        """Flash attention or plain products: see `XlaSettings.attention`.

        Raises:
          ValueError: the settings ask for flash attention, which cannot take arrays of these shapes.
        """
        misfit = self._misfit(q_BNTH, k_BNSH)
        if self._attention == "flash" and misfit:
            raise ValueError(f"attention = 'flash' needs {misfit}; set runtime.Xla.attention = 'auto', which "
                             "takes plain products there, or change the sizes")
        long = min(q_BNTH.shape[2], k_BNSH.shape[2]) >= LONG_SEQUENCE
        if self._attention == "flash" or (self._attention == "auto" and self._pallas and long and not misfit):
            return flash_attention(q_BNTH, k_BNSH, v_BNSH, causal=causal, mesh=self._mesh, spec=HEADS,
                                   num_parts=self._mesh.shape()["tensor"])
        return plain_attention(q_BNTH, k_BNSH, v_BNSH, causal=causal)

    def linear(self, x_I: Tensor, kernel_IO: Tensor, bias_O: Tensor) -> Tensor:
        """A dense layer with gradients in `XlaSettings.gradient_dtype`."""
        if self._gradient_dtype in (None, x_I.dtype):
            return plain_linear(x_I, kernel_IO, bias_O)
        return Linear.apply(x_I, kernel_IO, bias_O, self._gradient_dtype)

    def lay_out(
        self, array_L: Tensor, dtype: torch.dtype, *, is_kernel: bool, num_bytes: int = 0,
    ) -> Tensor | None:
        """Kernels in this dtype, and whole on every device, if all of them have at most `WHOLE_BYTES`.

        Otherwise each step would cast them, and gather those that are cut over devices. `Runtime.compile` makes whole
        what it returns.
        """
        if dtype == torch.int8:
            raise ValueError("int8 kernels need the torch runtime on a CPU, this is the xla runtime")
        sizes = self._mesh.shape()
        is_as_wanted = array_L.dtype == dtype and sizes["fsdp"] == sizes["tensor"] == 1
        return array_L.to(dtype) if is_kernel and not is_as_wanted and num_bytes <= WHOLE_BYTES else None

    def dropout(self, x: Tensor, key: Tensor, rate: float) -> Tensor:
        """A choice by the mask, which XLA fuses with what is around it."""
        keep = self.keep_mask(key, rate, tuple(x.shape), x.device)
        return torch.where(keep, x * (1.0 / (1.0 - rate)), torch.zeros((), dtype=x.dtype, device=x.device))

    def gelu_dropout(self, x: Tensor, key: Tensor | None, rate: float) -> Tensor:
        """GELU and dropout, computed once together with the derivative."""
        return GeluDropout.apply(x, None if key is None else self._keeps(key, rate, tuple(x.shape)), rate)

    def cross_entropy(self, logits_V: Tensor, codes: Tensor) -> Tensor:
        """In a form in which float32 logits exist only inside reductions.

        torch.nn.functional.cross_entropy keeps another array for the backward pass. With 8 x 1024 tokens and 8192
        codes, a TPU needs 257 MiB for it and the bfloat16 logits, but 128 MiB in this form (TPU compiler, v4, libtpu
        0.0.23).
        """
        logits_V = logits_V.float()
        here_V = torch.arange(logits_V.shape[-1], device=codes.device) == codes[..., None]
        return logits_V.logsumexp(-1) - torch.where(here_V, logits_V, 0.0).sum(-1)

    def layer_norm(self, x_D: Tensor, gain_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
        """Plain operations; torch_xla would turn torch.nn.functional.layer_norm into a batch normalisation."""
        centred_D = x_D - x_D.mean(-1, keepdim=True)
        return centred_D * torch.rsqrt(centred_D.square().mean(-1, keepdim=True) + eps) * gain_D + bias_D

    def keep_mask(self, key: Tensor, rate: float, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The mask as an array in memory; else XLA would draw it again in every product that reads what it masks."""
        keep = self._keeps(key, rate, shape)
        xm.optimization_barrier_([keep])
        return keep

    def empty_cache(
        self, sizes: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device,
    ) -> Tensor:
        """[L, B, S, D]: a position's heads side by side, as they are computed, and as `cached_attention` reads them."""
        num_layers, batch_size, num_heads, length, width = sizes
        return torch.zeros((num_layers, batch_size, length, num_heads * width), dtype=dtype, device=device)

    def filled(self, cache: Tensor, last: int | None) -> Tensor:
        """All of it: each number would be another program, and a part would first be copied."""
        return cache

    def write(self, cache: Tensor, entry_LB1D: Tensor, position: Tensor) -> None:
        """In place: all else of the cache stays where it is, cut over the devices as it was."""
        cache.copy_(_UPDATE(cache, entry_LB1D.to(cache.dtype), position.long(), axis=2))

    def cached_attention(
        self, q_B1D: Tensor, k_B1D: Tensor, v_B1D: Tensor, keys: Tensor, values: Tensor, position: Tensor,
        num_heads: int,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One product for all heads of an image, whose queries stand in rows with zeros for the other heads.

        A product for each head has one row, for which XLA takes the vector units. They are four times slower at it than
        the matrix units with N rows, although most of these products are with zeros (docs/performance.md).
        """
        width, device = q_B1D.shape[-1], q_B1D.device
        heads_N1 = torch.arange(num_heads, device=device)[:, None]
        is_own_ND = heads_N1 == torch.arange(width, device=device) // (width // num_heads)
        rows_BND = torch.where(is_own_ND, q_B1D, 0.0)
        # Without a dimension of size 1 for heads, with which a step takes nearly twice as long (16.7 for 9.0 ms).
        out_BND = plain_cached_attention(
            rows_BND, k_B1D, v_B1D, keys, values, position, (width // num_heads) ** -0.5)
        return torch.where(is_own_ND, out_BND, 0.0).sum(1, keepdim=True), (k_B1D, v_B1D)

    def precise_matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """A product of parts that a TPU multiplies exactly; it would round whole float32 factors."""
        return split_matmul(a, b) if self._splits_products else torch.matmul(a, b)

    def sums_by_code(self, x_PZ: Tensor, codes_P: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
        """See `plain.sums_by_code`."""
        return sums_by_code(x_PZ, codes_P, vocabulary, self.precise_matmul)

    def uniform(self, key: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Uniform draws from the hashed bits."""
        return to_uniform(self._bits(key, shape))

    def _misfit(self, q_BNTH: Tensor, k_BNSH: Tensor) -> str | None:
        """The reason why flash attention cannot take these arrays; None if it can."""
        sizes = self._mesh.shape()
        batch, heads, queries, head_size = q_BNTH.shape
        for what, size, parts in (("a batch", batch, sizes["data"] * sizes["fsdp"]),
                                  ("a number of heads", heads, sizes["tensor"])):
            if size % parts:
                return f"{what} that is a multiple of {parts}, got {size}"
        try:
            choose_blocks(heads // sizes["tensor"], head_size, queries, k_BNSH.shape[2], q_BNTH.dtype.itemsize)
        except ValueError as error:
            return str(error)
        return None

    def _allocate(self, number: int, shape: tuple[int, ...], like_B: Tensor) -> Tensor:
        sizes = self._mesh.shape()
        spec = batch_spec(like_B.ndim)
        return allocate(number, tuple(shape), like_B, self._mesh, spec, sizes["data"] * sizes["fsdp"])

    def _place(self, x_B: Tensor) -> None:
        spec = batch_spec(x_B.ndim)
        torch_xla._XLAC._xla_annotate_custom_sharding(x_B, self._mesh.get_op_sharding(spec))

    def _keeps(self, key: Tensor, rate: float, shape: tuple[int, ...]) -> Tensor:
        """Compares 32 hashed bits, as a signed number, with the rate."""
        return self._bits(key, shape) >= round(rate * 2**32) - 2**31

    def _bits(self, key: Tensor, shape: tuple[int, ...]) -> Tensor:
        """32 random bits for each position, as int32; the upper bits are more random.

        Each row (all dimensions except the last) has its own key, and so has each column. Two multiplications then
        remain for every element.
        """
        keys = key
        for axis in range(len(shape) - 1):
            keys = mix_bits(mix_bits(_along(axis, shape, key.device)) ^ keys)
        if shape:
            keys = keys ^ mix_bits(_along(len(shape) - 1, shape, key.device))
        bits = keys * 0x7FEB352D
        # A shift to the right as in `mix_bits`.
        return (bits ^ ((bits & -0x8000) >> 15 & 0x1FFFF)) * (0x846CA68B - 2**32)


def _update(cache: Any, entry: Any, place: Any, *, axis: int) -> Any:
    """XLA's dynamic-update-slice, which no operation of PyTorch is lowered to for a place on the device."""
    starts = [place if i == axis else place.zeros_like() for i in range(len(cache.shape().sizes))]
    return cache.dynamic_update_slice(entry, starts)


_UPDATE = xor.register("vqim_update", _update)


def _along(axis: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """0, 1, 2 ... along one dimension of `shape`; the others have size 1."""
    numbers = torch.arange(shape[axis], dtype=torch.int32, device=device)
    return numbers.reshape([-1 if i == axis else 1 for i in range(len(shape))])
