"""The XLA runtime: one program over a mesh of devices (SPMD), on Cloud TPUs, or on virtual CPU devices to test it.

    B batch, T queries, S keys, N heads, H head dimension
"""
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch_xla
import torch_xla.backends
import torch_xla.core.xla_model as xm
import torch_xla.distributed.spmd as xs
import torch_xla.runtime as xr
from torch import Tensor
from torch.distributed import TCPStore
from torch_xla._internal import tpu

from vqim.runtime.partition import MESH_AXES, Partition
from vqim.runtime.plain import loop_scan, plain_attention
from vqim.runtime.runtime import Fill, Shards, scalar, to_numpy, to_tensor
from vqim.runtime.settings import XlaSettings
from vqim.state.init import full_index
from vqim.state.leaf import Leaf
from vqim.state.random import mix_bits

PEAK_FLOPS = {"v4": 275e12, "v5litepod": 197e12, "v5p": 459e12, "v6e": 918e12}
"""bfloat16 operations a second of one chip, by Google's published specifications."""


STORE_PORT = 8479
"""On the first host, where hosts meet; torch_xla uses 8476 and libtpu 8471."""


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
        """31 random bits for each position, as int32 of at least 0."""
        position = torch.zeros(shape, dtype=torch.int32, device=key.device)
        stride = 1
        for axis in reversed(range(len(shape))):
            along = torch.arange(shape[axis], dtype=torch.int32, device=key.device) * stride
            position = position + along.reshape([-1 if i == axis else 1 for i in range(len(shape))])
            stride = (stride * shape[axis]) % 2**31
        return mix_bits(mix_bits(position) ^ key) & 0x7FFFFFFF


class XlaRuntime:
    """All devices of the run as one mesh with the axes data, fsdp and tensor.

    Batches are cut over data and fsdp; the state as the partition rules say.
    """

    def __init__(self, settings: XlaSettings):
        """Takes all devices.

        Raises:
          ValueError: the mesh does not fit their number.
        """
        xr.use_spmd()
        num_devices = xr.global_runtime_device_count()
        fsdp, tensor = settings.fsdp, settings.tensor
        if num_devices % (fsdp * tensor):
            raise ValueError(
                f"fsdp x tensor must divide the number of devices, {num_devices}; got fsdp {fsdp} and tensor {tensor}")
        torch_xla.backends.set_mat_mul_precision(settings.matmul_precision)
        self.matmul_precision = settings.matmul_precision
        self.mesh_shape = {"data": num_devices // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor}
        self.mesh = xs.Mesh(np.arange(num_devices), tuple(self.mesh_shape.values()), MESH_AXES)
        self.device = torch_xla.device()
        self.kernels = XlaKernels()
        self.partition = Partition(settings.rules)
        self.process_index = xr.process_index()
        self.process_count = xr.process_count()
        self.num_batch_shards = self.mesh_shape["data"] * fsdp
        per_chip = PEAK_FLOPS.get(tpu.get_tpu_type() or "") if xr.device_type() == "TPU" else None
        self._store: TCPStore | None = None
        if self.process_count > 1:
            self._store = TCPStore(
                xr.get_master_ip(), STORE_PORT, is_master=self.process_index == 0, wait_for_workers=False)
        self.peak_flops = per_chip * num_devices if per_chip else None

    def place(self, name: str, leaf: Leaf, fill: Fill) -> Tensor:
        """See `Runtime.place`. The host holds this one array while it is sent."""
        spec = self.partition.spec(name, leaf, self.mesh_shape)
        tensor = to_tensor(fill(full_index(leaf.shape)), leaf.dtype).to(self.device)
        xs.mark_sharding(tensor, self.mesh, spec)
        return tensor

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """See `Runtime.put`."""
        tensors = {}
        for name, array in batch.items():
            size = array.shape[0] * self.process_count
            if size % self.num_batch_shards:
                raise ValueError(
                    f"the batch size must be a multiple of {self.num_batch_shards}, the devices that share a batch; "
                    f"{name} has {size}")
            sharding = xs.ShardingSpec(self.mesh, (("data", "fsdp"), *(None,) * (array.ndim - 1)))
            tensors[name] = xm.send_cpu_data_to_device(
                torch.from_numpy(np.ascontiguousarray(array)), self.device, input_sharding=sharding)[0]
        return tensors

    def scalars(self, values: Mapping[str, int | float]) -> dict[str, Tensor]:
        """See `Runtime.scalars`: data of the program, never constants in it.

        torch_xla makes a 0-d tensor of 0 or 1 a constant of the program, and equal ones a single parameter: either
        compiles anew when the value changes. An element of a vector is always data.
        """
        return {name: scalar(value).reshape(1).to(self.device)[0] for name, value in values.items()}

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Traces the function at each call and runs it as one program; XLA compiles it at the first."""

        def run(*args: Any) -> Any:
            result = function(*args)
            torch_xla.sync()
            return result

        return run

    def fetch(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """See `Runtime.fetch`."""
        return [to_numpy(tensor) for tensor in tensors]

    def shards(self, tensor: Tensor) -> Shards:
        """See `Runtime.shards`."""
        shape, dtype = tuple(tensor.shape), to_numpy(torch.empty(0, dtype=tensor.dtype)).dtype
        local = xs.wrap_if_sharded(tensor)
        if not isinstance(local, xs.XLAShardedTensor):
            parts = [(full_index(shape), to_numpy(tensor))] if self.process_index == 0 else []
            return Shards(shape, dtype, parts)
        parts = []
        for shard in local.local_shards:
            if shard.replica_id != 0:
                continue
            index = full_index(shape) if shard.indices is Ellipsis else tuple(
                slice(*part.indices(size)[:2]) for part, size in zip(shard.indices, shape, strict=True))
            parts.append((index, to_numpy(shard.unpadded_data)))
        return Shards(shape, dtype, parts)

    def barrier(self, name: str) -> None:
        """See `Runtime.barrier`; over the host network, so that a thread may wait while steps go on."""
        if self._store is not None:
            self._store.add(name, 1)
            while int(self._store.add(name, 0)) < self.process_count:
                time.sleep(0.05)

    def describe(self) -> dict[str, Any]:
        """See `Runtime.describe`."""
        return {"runtime": "xla", "device": xr.device_type(), "num_devices": xr.global_runtime_device_count(),
                "mesh": self.mesh_shape, "matmul_precision": self.matmul_precision,
                "torch": torch.__version__, "torch_xla": torch_xla.__version__}
