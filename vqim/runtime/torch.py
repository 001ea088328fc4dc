"""The torch runtime: eager PyTorch on one CPU or one CUDA device, for laptops and GPU machines.

    B batch, T queries, S keys, N heads, H head dimension, D = N H, L layers
"""
import dataclasses
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqim.contracts.runtime import Fill, Hosts, Shards
from vqim.runtime.arrays import scalar, to_numpy, to_tensor
from vqim.runtime.hosts import OneHost
from vqim.runtime.int8 import int8_kernel, int8_linear
from vqim.runtime.plain import loop_scan, plain_attention, plain_cached_attention, plain_linear
from vqim.runtime.settings import TorchSettings
from vqim.state.init import full_index
from vqim.state.leaf import Leaf

SHORT_SEQUENCE = 128
_LARGE_KERNEL = 2**20
"""Elements."""
_REORDER = "_reorder_linear_weight"


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

        torch's own product (MKL) of 8 rows with a matrix reads it at about half of the memory's speed (AMD EPYC).
        These are the operations to which torch.compile turns linear layers on CPUs. They take 40 microseconds longer
        to begin, which is more than they save where the cache holds the kernel.
        """
        if not is_kernel:
            return list(array_L.unbind(0))
        if dtype == torch.int8:
            return [int8_kernel(kernel_IO.detach()) for kernel_IO in array_L.unbind(0)]
        kernels_IO = [kernel_IO.detach().to(dtype) for kernel_IO in array_L.unbind(0)]
        small = array_L[0].numel() < _LARGE_KERNEL
        if small or array_L.device.type != "cpu" or dtype != torch.float32 or not hasattr(torch.ops.mkldnn, _REORDER):
            return kernels_IO
        return [torch.ops.mkldnn._reorder_linear_weight(kernel_IO.mT) for kernel_IO in kernels_IO]

    def gelu_dropout(self, x: Tensor, key: Tensor | None, rate: float) -> Tensor:
        """torch.nn.functional.gelu, then a mask."""
        y = F.gelu(x)
        if key is None:
            return y
        return torch.where(self.keep_mask(key, rate, tuple(x.shape), x.device), y * (1.0 / (1.0 - rate)), 0.0)

    def empty_cache(
        self, sizes: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device,
    ) -> Tensor:
        """[L, B, N, S, H]: what a head reads lies together."""
        return torch.zeros(sizes, dtype=dtype, device=device)

    def filled(self, cache: Tensor, number: int | None) -> Tensor:
        """The first `number`."""
        return cache[:, :, :, :number]

    def write(self, cache: Tensor, entry_LB1D: Tensor, position: Tensor) -> None:
        """Touches nothing but the entry."""
        cache.index_copy_(3, position.reshape(1), _by_head(entry_LB1D, cache.shape[2]))

    def cached_attention(
        self, q_B1D: Tensor, k_B1D: Tensor, v_B1D: Tensor, keys: Tensor, values: Tensor, position: Tensor,
        num_heads: int,
    ) -> Tensor:
        """A product for each image and head."""
        q_BN1H, k_BN1H, v_BN1H = (_by_head(x, num_heads) for x in (q_B1D, k_B1D, v_B1D))
        out_BN1H = plain_cached_attention(
            q_BN1H, k_BN1H, v_BN1H, keys, values, position, q_BN1H.shape[-1] ** -0.5)
        return out_BN1H.reshape(q_B1D.shape)

    def precise_matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """torch.matmul, which is exact float32 here unless someone allows TF32."""
        return torch.matmul(a, b)

    def layer_norm(self, x_D: Tensor, gain_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
        """torch.nn.functional.layer_norm."""
        return F.layer_norm(x_D, gain_D.shape, gain_D, bias_D, eps)

    def keep_mask(self, key: Tensor, rate: float, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Bernoulli(1 - rate)."""
        return self.uniform(key, shape, device) >= rate

    def uniform(self, key: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """U[0, 1); keys live on the host here, so reading one does not wait for the device."""
        generator = torch.Generator(device=device).manual_seed(int(key) + 2**31)
        return torch.rand(shape, generator=generator, device=device)


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
        if settings.num_threads is not None:
            torch.set_num_threads(settings.num_threads)
        self.device = torch.device(device)
        self.hosts: Hosts = OneHost()
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device must be one that is here, got {device!r}: torch finds no CUDA device")
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
