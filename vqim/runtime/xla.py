"""The XLA runtime: one program over a mesh of devices (SPMD), on Cloud TPUs, or on virtual CPU devices for tests."""
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch_xla
import torch_xla.backends
import torch_xla.core.xla_model as xm
import torch_xla.distributed.spmd as xs
import torch_xla.runtime as xr
from torch import Tensor
from torch.utils import _pytree as pytree
from torch_xla._internal import tpu

from vqim.contracts.runtime import Fill, Hosts, Shards
from vqim.runtime.arrays import scalar, to_numpy, to_tensor
from vqim.runtime.chips import CHIPS, Chip
from vqim.runtime.hosts import HostNetwork, OneHost
from vqim.runtime.partition import MESH_AXES, Partition, PartitionSpec, part_of
from vqim.runtime.settings import XlaSettings
from vqim.runtime.xla_kernels import BATCH_AXES, XlaKernels, batch_spec
from vqim.runtime.xla_metrics import XlaCounters, trace
from vqim.state.init import full_index
from vqim.state.leaf import Leaf

BARRIER_PORT = 8479
"""The port on the first host for messages between hosts; torch_xla uses 8476 and libtpu 8471."""


def _tensors(tree: Any) -> list[Tensor]:
    """All tensors in dicts, lists, tuples and dataclasses."""
    if isinstance(tree, Tensor):
        return [tree]
    if dataclasses.is_dataclass(tree):
        tree = vars(tree)
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    return [tensor for branch in tree for tensor in _tensors(branch)] if isinstance(tree, list | tuple) else []


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run.

    Attributes:
      chip: the kind of TPU; None for no TPU or an unknown kind.
      count: the number of all devices in the run; programs number them from 0.
      own: the numbers of this process's devices, in the process's order.
      process_index: the index of this process in the run.
      process_count: the number of processes in the run.
    """

    chip: Chip | None
    count: int
    own: tuple[int, ...]
    process_index: int
    process_count: int


def devices_here() -> Devices:
    """The devices of this run."""
    chips = {chip.libtpu_type: chip for chip in CHIPS.values()}
    chip = chips.get(tpu.get_tpu_type() or "") if xr.device_type() == "TPU" else None
    everyone = torch_xla._XLAC._xla_get_all_runtime_devices()
    own = tuple(everyone.index(device) for device in torch_xla._XLAC._xla_get_runtime_devices())
    return Devices(chip, len(everyone), own, xr.process_index(), xr.process_count())


class Mesh(xs.Mesh):
    """torch_xla's mesh, without its check that the mesh has as many devices as this machine.

    Args:
      shape: the size of each axis.
      order: the device numbers for the places on the mesh.
    """

    def __init__(self, shape: Mapping[str, int], order: Sequence[int]):
        self.mesh_shape, self.axis_names = tuple(shape.values()), tuple(shape)
        self.device_ids = np.array(order)


class XlaRuntime:
    """All devices of the run as one mesh with the axes data, fsdp and tensor.

    Batches are cut over data and fsdp, and the state by the partition rules. Everything that a program returns is whole
    on every device.
    """

    def __init__(self, settings: XlaSettings, devices: Devices | None = None):
        """Takes all devices.

        Raises:
          ValueError: the mesh does not fit their number, or their distribution over processes.
        """
        xr.use_spmd()
        # Numbers in the code become constants in the program. By default they would be parameters, each sent to the
        # device, and merged with others that have the same value at the time; another value would then recompile.
        torch_xla._XLAC._set_xla_all_numbers_special_scalars(True)
        self.devices = devices or devices_here()
        num_devices = self.devices.count
        fsdp, tensor = settings.fsdp, settings.tensor
        if num_devices % (fsdp * tensor):
            raise ValueError(
                f"fsdp x tensor must divide the number of devices, {num_devices}; got fsdp {fsdp} and tensor {tensor}")
        if settings.matmul_precision != torch_xla.backends.get_mat_mul_precision():
            torch_xla.backends.set_mat_mul_precision(settings.matmul_precision)
        self.matmul_precision = settings.matmul_precision
        self.mesh_shape = {"data": num_devices // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor}
        self.process_index, self.process_count = self.devices.process_index, self.devices.process_count
        self.hosts = self._meet()
        order = self._device_order()
        self.mesh = Mesh(self.mesh_shape, order)
        self.device = torch_xla.device()
        self.kernels = XlaKernels(self.mesh, settings, tpu=self.devices.chip is not None)
        self.partition = Partition(settings.rules)
        self.num_batch_shards = self.mesh_shape["data"] * fsdp
        self._positions = self._local_positions(order)
        held = {tuple(position[axis] for axis in BATCH_AXES) for position in self._positions}
        if len(held) * self.process_count != self.num_batch_shards:
            raise ValueError(
                f"tensor must divide the number of devices of a host, {len(self._positions)}, or the batch has parts "
                f"that two hosts would have to load; got {tensor}")
        self.peak_flops = self.devices.chip.peak_flops * num_devices if self.devices.chip else None
        self._counters = XlaCounters()

    def place(self, name: str, leaf: Leaf, fill: Fill) -> Tensor:
        """See `Runtime.place`. The host holds this one array while it is sent."""
        spec = self.partition.spec(name, leaf, self.mesh_shape)
        whole = torch.empty(leaf.shape, dtype=leaf.dtype)
        parts = [part_of(leaf.shape, spec, self.mesh_shape, position) for position in self._positions]
        for index in {str(index): index for index in parts}.values():
            whole[index] = to_tensor(fill(index), leaf.dtype)
        # If it were sent from its parts, like batches, torch_xla would not know its dtype until it is updated. Some
        # means would then be lowered differently, and the first step would be another program.
        tensor = whole.to(self.device)
        torch_xla._XLAC._xla_mark_sharding(tensor, self.mesh.get_op_sharding(spec))
        return tensor

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """See `Runtime.put`."""
        return {name: self._put(name, array) for name, array in batch.items()}

    def scalars(self, values: Mapping[str, int | float]) -> dict[str, Tensor]:
        """See `Runtime.scalars`. They are arguments of programs; torch_xla would make constants of 0-d tensors."""
        return {name: self._send([scalar(value)] * len(self._positions), (), ()) for name, value in values.items()}

    def cut(self, arrays: Sequence[Tensor], axis: int) -> list[Tensor]:
        """See `Runtime.cut`."""
        for array in arrays:
            sharding = self.mesh.get_op_sharding(batch_spec(array.ndim, axis))
            torch_xla._XLAC._xla_annotate_custom_sharding(array, sharding)
        self._run(list(arrays))
        return list(arrays)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Traces the function at each call and runs it as one program; XLA compiles it at the first call."""

        def run(*args: Any) -> Any:
            result = pytree.tree_map_only(Tensor, self._replicated, function(*args))
            self._run(_tensors((args, result)))
            return result

        return run

    def fetch(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """See `Runtime.fetch`."""
        return [to_numpy(tensor) for tensor in torch_xla._XLAC._xla_get_cpu_tensors(list(tensors))]

    def shards(self, tensor: Tensor) -> Shards:
        """See `Runtime.shards`. Of copies on several devices, the one that XLA numbers 0 is written."""
        shape, dtype = tuple(tensor.shape), to_numpy(torch.empty(0, dtype=tensor.dtype)).dtype
        if torch_xla._XLAC._get_xla_sharding_type(tensor) == xs.ShardingType.REPLICATED:
            parts = [(full_index(shape), to_numpy(tensor))] if self.process_index == 0 else []
            return Shards(shape, dtype, parts)
        xm.wait_device_ops()  # local_shards refuses arrays that a program is about to make
        parts = []
        for shard in xs.XLAShardedTensor(tensor).local_shards:
            if shard.replica_id == 0:
                index = full_index(shape) if shard.indices is Ellipsis else tuple(
                    slice(part.start, part.stop) for part in shard.indices)
                parts.append((index, to_numpy(shard.unpadded_data)))
        return Shards(shape, dtype, parts)

    def counters(self) -> dict[str, float]:
        """See `Runtime.counters`."""
        return self._counters.read()

    def profile(self, directory: str | os.PathLike[str]) -> AbstractContextManager[Any]:
        """See `Runtime.profile`: directory/plugins/profile/<time>/<host>.xplane.pb."""
        return trace(directory)

    def describe(self) -> dict[str, Any]:
        """See `Runtime.describe`."""
        return {"runtime": "xla", "device": xr.device_type(), "num_devices": self.devices.count,
                "mesh": self.mesh_shape, "matmul_precision": self.matmul_precision,
                "torch": torch.__version__, "torch_xla": torch_xla.__version__}

    def _device_order(self) -> list[int]:
        """The numbers of all devices, host by host.

        This way the parts of a batch are in the order of the processes, and the mesh's last axes stay within a host.
        libtpu numbers chips by their coordinates, and a host has two by two chips: 0, 1, 4 and 5 in v4:4x4x8.
        """
        if self.hosts.process_count == 1:
            return list(range(self.devices.count))
        self.hosts.post(f"devices/{self.process_index}", json.dumps(self.devices.own))
        of_hosts = [json.loads(self.hosts.get(f"devices/{index}")) for index in range(self.process_count)]
        return [number for own in of_hosts for number in own]

    def _local_positions(self, order: list[int]) -> list[dict[str, int]]:
        """The mesh positions of this process's devices, in torch_xla's order."""
        positions = []
        for number in self.devices.own:
            place = np.unravel_index(order.index(number), tuple(self.mesh_shape.values()))
            positions.append(dict(zip(MESH_AXES, map(int, place), strict=True)))
        return positions

    def _meet(self) -> Hosts:
        if self.process_count == 1:
            return OneHost()
        return HostNetwork(xr.get_master_ip(), BARRIER_PORT, self.process_index, self.process_count)

    def _whole_shape(self, name: str, array: np.ndarray) -> tuple[int, ...]:
        """The shape of a whole batch array, of which this process has `array`."""
        shape = (array.shape[0] * self.process_count, *array.shape[1:])
        if shape[0] % self.num_batch_shards:
            raise ValueError(
                f"the batch size must be a multiple of {self.num_batch_shards}, the devices that share a batch; "
                f"{name} has {shape[0]}")
        return shape

    def _put(self, name: str, array: np.ndarray) -> Tensor:
        shape, spec = self._whole_shape(name, array), batch_spec(array.ndim)
        # Rows of the whole batch are numbered by device; this process fills the rows of its devices, in their order.
        rows = [part_of(shape, spec, self.mesh_shape, position)[0].start for position in self._positions]
        parts = to_tensor(array).split(shape[0] // self.num_batch_shards)
        own = dict(zip(sorted(set(rows)), parts, strict=True))
        return self._send([own[row] for row in rows], shape, spec)

    def _send(self, shards: list[Tensor], shape: tuple[int, ...], spec: PartitionSpec) -> Tensor:
        """A device array from the parts that this process's devices hold."""
        return torch_xla._XLAC._global_tensor_from_cpu_shards(shards, self.mesh.get_op_sharding(spec), shape)

    def _run(self, tensors: list[Tensor]) -> None:
        """Computes pending tensors, without waiting for them.

        Only these are computed. `torch_xla.sync` would compute all live tensors: a gradient that autograd's thread has
        not freed yet would sometimes be one more output, and so make another program.
        """
        torch_xla._XLAC._xla_sync_multi(tensors, [], wait=False, sync_xla_data=True)

    def _replicated(self, tensor: Tensor) -> Tensor:
        """The same values, whole on every device; fetching anything else would compile a program each time."""
        copy = tensor.clone()
        torch_xla._XLAC._xla_annotate_custom_sharding(copy, self.mesh.get_op_sharding((None,) * copy.ndim))
        return copy
