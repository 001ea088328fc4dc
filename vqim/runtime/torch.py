"""The torch runtime: eager PyTorch on one CPU or one CUDA device, for laptops and GPU machines.

    B batch, T queries, S keys, N heads, H head dimension, D = N H, L layers
    V vocabulary, P latents, Z their dimension
"""
import dataclasses
import math
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqim.contracts.runtime import Fill, Hosts, Shards
from vqim.runtime.arrays import scalar, to_numpy, to_tensor
from vqim.runtime.hosts import OneHost
from vqim.runtime.int8 import int8_kernel, int8_linear
from vqim.runtime.plain import loop_scan, plain_attention, plain_linear, sums_by_code
from vqim.runtime.settings import TorchSettings
from vqim.state.init import full_index
from vqim.state.leaf import Leaf

SHORT_SEQUENCE = 128
_LARGE_KERNEL = 2**19
"""Elements."""
_REORDER = "_reorder_linear_weight"
_BFLOAT16_PRODUCTS = {"avx512_bf16", "amx_bf16"}
"""/proc/cpuinfo's names of the instructions."""


@dataclasses.dataclass
class TorchKernels:
    """A loop over layers, fused attention, and random bits from a generator seeded with the key.

    Attributes:
      remat: see `TorchSettings`.
    """

    remat: str = "none"

    def scan(self, body: Callable[[Tensor, Any], tuple[Tensor, Any]], carry: Tensor, inputs: Any) -> tuple[Tensor, Any]:
        """A Python loop over the first axis."""
        return loop_scan(body, carry, inputs, self.remat)

    def attention(self, q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, *, causal: bool) -> Tensor:
        """torch.nn.functional.scaled_dot_product_attention, or the plain products where they are faster.

        On a CPU torch's fused kernel is slower on short sequences, mostly in bfloat16: forward and backward take 5 to 7
        times as long at 64 tokens (torch 2.9.1, AMD EPYC, one thread).
        """
        if q_BNTH.device.type == "cpu" and k_BNSH.shape[2] <= SHORT_SEQUENCE:
            return plain_attention(q_BNTH, k_BNSH, v_BNSH, causal=causal)
        return F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, is_causal=causal)

    def linear(self, x_I: Tensor, kernel_IO: Tensor, bias_O: Tensor) -> Tensor:
        """torch.nn.functional.linear, or the product with a kernel from `lay_out` by oneDNN, in int8 by FBGEMM."""
        if isinstance(kernel_IO, torch.ScriptObject):
            return int8_linear(x_I, kernel_IO) + bias_O
        if kernel_IO.is_mkldnn:
            return torch.ops.mkldnn._linear_pointwise(x_I, kernel_IO, bias_O.to(x_I.dtype), "none", [], "")
        return plain_linear(x_I, kernel_IO, bias_O)

    def lay_out(
        self, array_L: Tensor, dtype: torch.dtype, *, is_kernel: bool, num_bytes: int = 0,
    ) -> list[Any]:
        """A list of the layers' arrays; on a CPU, large kernels in the order in which oneDNN reads them.

        torch's own product of 8 rows with a matrix reads it at about half of the memory's speed, and in bfloat16 puts
        it into oneDNN's order in every call (AMD EPYC). These are the operations to which torch.compile turns linear
        layers on CPUs. They take 40 microseconds longer to begin, which is more than they save where the cache holds
        the kernel.
        """
        if not is_kernel:
            return list(array_L.unbind(0))
        if dtype == torch.int8:
            return [int8_kernel(kernel_IO.detach()) for kernel_IO in array_L.unbind(0)]
        kernels_IO = [kernel_IO.detach().to(dtype) for kernel_IO in array_L.unbind(0)]
        if array_L.device.type != "cpu" or array_L[0].numel() < _LARGE_KERNEL or not _onednn_multiplies(dtype):
            return kernels_IO
        return [torch.ops.mkldnn._reorder_linear_weight(kernel_IO.mT) for kernel_IO in kernels_IO]

    def dropout(self, x: Tensor, key: Tensor, rate: float) -> Tensor:
        """A product with the mask as bytes: on a CPU 6 times as fast as a choice by bools (torch 2.9.1, AVX-512)."""
        keep = self.keep_mask(key, rate, tuple(x.shape), x.device)
        return (x * keep.view(torch.uint8)) * (1.0 / (1.0 - rate))

    def gelu_dropout(self, x: Tensor, key: Tensor | None, rate: float) -> Tensor:
        """torch.nn.functional.gelu, then `dropout`."""
        y = F.gelu(x)
        return y if key is None else self.dropout(y, key, rate)

    def cross_entropy(self, logits_V: Tensor, codes: Tensor) -> Tensor:
        """torch.nn.functional.cross_entropy."""
        losses = F.cross_entropy(logits_V.float().flatten(0, -2), codes.flatten().long(), reduction="none")
        return losses.view(codes.shape)

    def empty_cache(
        self, sizes: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device,
    ) -> Tensor:
        """[L, B, N, S, H]: what a head reads lies together."""
        return torch.zeros(sizes, dtype=dtype, device=device)

    def filled(self, cache: Tensor, last: int | None) -> Tensor:
        """The first ones, `last` included."""
        return cache if last is None else cache[:, :, :, :last + 1]

    def cached_attention(
        self, q_B1D: Tensor, k_B1D: Tensor, v_B1D: Tensor, keys: Tensor, values: Tensor, position: Tensor,
        num_heads: int,
    ) -> tuple[Tensor, None]:
        """Writes the entries, then torch.nn.functional.scaled_dot_product_attention over all that is filled.

        A CPU takes it in fewer operations than plain products, which of a small prior are most of the time.
        """
        self.write(keys[None], k_B1D[None], position)
        self.write(values[None], v_B1D[None], position)
        is_filled_1S = None
        if position.device.type == "cpu":
            keys, values = (cache[:, :, :int(position) + 1] for cache in (keys, values))
        else:  # to read the position would make the host wait
            is_filled_1S = torch.arange(keys.shape[2], device=keys.device)[None] <= position
        attended_BN1H = F.scaled_dot_product_attention(_by_head(q_B1D, num_heads), keys, values, is_filled_1S)
        return attended_BN1H.reshape(q_B1D.shape), None

    def write(self, cache: Tensor, entry_LB1D: Tensor, position: Tensor) -> None:
        """Touches nothing but the entry."""
        cache.index_copy_(3, position.reshape(1), _by_head(entry_LB1D, cache.shape[2]))

    def precise_matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """torch.matmul, which is exact float32 here unless someone allows TF32."""
        return torch.matmul(a, b)

    def sums_by_code(self, x_PZ: Tensor, codes_P: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
        """Additions on a CPU; on a GPU, where their order would change from run to run, a product."""
        if x_PZ.device.type != "cpu":
            return sums_by_code(x_PZ, codes_P, vocabulary)
        sums_VZ = x_PZ.new_zeros(vocabulary, x_PZ.shape[1])
        return codes_P.bincount(minlength=vocabulary).float(), sums_VZ.index_add_(0, codes_P, x_PZ)

    def layer_norm(self, x_D: Tensor, gain_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
        """torch.nn.functional.layer_norm."""
        return F.layer_norm(x_D, gain_D.shape, gain_D, bias_D, eps)

    def keep_mask(self, key: Tensor, rate: float, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Bernoulli(1 - rate), with rate rounded to 1 / 65,536: of 64 random bits each entry takes 16."""
        size = math.prod(shape)
        bits = torch.empty(-(-size // 4), dtype=torch.int64, device=device)
        bits.random_(-2**63, None, generator=_generator(key, device))
        bits = bits.view(torch.int16)[:size].view(shape)
        # Into bytes: into bools, a CPU compares five times as long.
        keep = torch.empty(shape, dtype=torch.uint8, device=device)
        return torch.ge(bits, min(round(rate * 2**16), 2**16 - 1) - 2**15, out=keep).view(torch.bool)

    def uniform(self, key: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """U[0, 1); keys live on the host here, so reading one does not wait for the device."""
        return torch.rand(shape, generator=_generator(key, device), device=device)


def _generator(key: Tensor, device: torch.device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(int(key) + 2**31)


def _onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether torch has oneDNN here, with products in this dtype."""
    if not hasattr(torch.ops.mkldnn, _REORDER):
        return False
    return dtype == torch.float32 or dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_bfloat16_products(cpuinfo: str | os.PathLike[str] = "/proc/cpuinfo") -> bool:
    """Whether the torch runtime multiplies bfloat16 faster than float32 here: its GPU, or by Linux's word its CPU."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    path = Path(cpuinfo)
    return path.exists() and not _BFLOAT16_PRODUCTS.isdisjoint(path.read_text().split())


class TorchRuntime:
    """One process, one device."""

    process_index = 0
    process_count = 1
    num_batch_shards = 1
    peak_flops: float | None = None

    def __init__(self, settings: TorchSettings | None = None):
        """Chooses the device.

        Raises:
          ValueError: this machine does not have the device.
        """
        settings = settings or TorchSettings()
        device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise ValueError(f"device must be cpu, cuda or cuda:<number>, got {device!r}")
        if settings.num_threads is not None:
            torch.set_num_threads(settings.num_threads)
        self.device = torch.device(device)
        self.hosts: Hosts = OneHost()
        if self.device.type == "cuda" and (self.device.index or 0) >= (count := torch.cuda.device_count()):
            raise ValueError(f"device must be one that is here, got {device!r}: torch finds {count or 'no'} CUDA device"
                             + "s" * (count > 1))
        self.kernels = TorchKernels(settings.remat)

    def place(self, name: str, leaf: Leaf, fill: Fill) -> Tensor:
        """See `Runtime.place`."""
        return to_tensor(fill(full_index(leaf.shape)), leaf.dtype).to(self.device)

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """See `Runtime.put`. A GPU copies from pinned memory, while the host goes on."""
        arrays = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
        if self.device.type == "cuda":
            arrays = {name: array.pin_memory() for name, array in arrays.items()}
        return {name: array.to(self.device, non_blocking=True) for name, array in arrays.items()}

    def scalars(self, values: Mapping[str, int | float]) -> dict[str, Tensor]:
        """Scalars stay on the host: torch mixes them with arrays of any device."""
        return {name: scalar(value) for name, value in values.items()}

    def cut(self, arrays: Sequence[Tensor], axis: int) -> list[Tensor]:
        """Returns the arrays unchanged: one device holds all of them."""
        return list(arrays)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function itself, run eagerly."""
        return function

    def fetch(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """See `Runtime.fetch`."""
        return [to_numpy(tensor) for tensor in tensors]

    def shards(self, tensor: Tensor) -> Shards:
        """See `Runtime.shards`: all of it."""
        values = to_numpy(tensor)
        return Shards(values.shape, values.dtype, [(full_index(values.shape), values)])

    def counters(self) -> dict[str, float]:
        """No counters."""
        return {}

    def profile(self, directory: str | os.PathLike[str]) -> AbstractContextManager[Any]:
        """See `Runtime.profile`: directory/<host>_<process>.<time>.pt.trace.json."""
        return torch.profiler.profile(on_trace_ready=torch.profiler.tensorboard_trace_handler(str(directory)))

    def describe(self) -> dict[str, Any]:
        """See `Runtime.describe`."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()
        return {"runtime": "torch", "device": str(self.device), "device_name": name, "num_devices": 1,
                "num_threads": torch.get_num_threads(), "torch": torch.__version__}


def _by_head(x_1D: Tensor, num_heads: int) -> Tensor:
    """One position's heads apart, [..., N, 1, H]; einops would take a tenth of a small prior's step for this."""
    return x_1D.unflatten(-1, (num_heads, -1)).transpose(-3, -2)
