"""Calls the TPU compiler (libtpu through jax) for a topology; the machine needs no TPU.

It is loaded in a separate process (`environment`), so that it does not disturb a training run on the same machine.
"""
import dataclasses
import io
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from vqim.runtime.chips import CHIPS, Chip
from vqim.runtime.hlo import operation_name
from vqim.runtime.partition import MESH_AXES, PartitionSpec, mesh_axes

REQUIRED = {"jax": "0.7.1", "jaxlib": "0.7.1", "libtpu": "0.0.23"}
"""The tested versions. The calls below are not public in jax, and libtpu 0.0.21, which torch_xla[tpu] pins, refuses the
Pallas kernels of this jax."""

INSTALL = "pip install 'vqim[tpu-compile]'"


class OutOfMemoryError(Exception):
    """A program does not fit the chip.

    Attributes:
      used: the GiB that the program needs, if the compiler says so.
      limit: the GiB that the chip has, if the compiler says so.
      buffers: the largest buffers.
    """

    def __init__(self, message: str, used: float | None, limit: float | None, buffers: "Sequence[Buffer]"):
        super().__init__(message)
        self.used, self.limit, self.buffers = used, limit, list(buffers)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array that the compiler would have to keep in memory.

    Attributes:
      size: its size as the compiler writes it, '2.25G'.
      shape: the shape of one device's part.
      operation: the modules and the operation that made it.
    """

    size: str
    shape: str
    operation: str


@dataclasses.dataclass(frozen=True)
class Slice:
    """A box of chips, as the compiler sees them.

    Attributes:
      name: its name, such as 'v4:4x4x8'.
      chip: the kind of chip.
      shape: the number of chips along each dimension of the box.
      coordinates: the coordinates of each device, [num_devices, 3], in the order in which programs number devices.
      hosts: the host of each device.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    coordinates: np.ndarray
    hosts: tuple[int, ...]
    description: Any = dataclasses.field(repr=False)

    @property
    def num_devices(self) -> int:
        """The number of devices of a program: one for each chip."""
        return len(self.hosts)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program for a slice.

    Attributes:
      hlo: the optimised program of one device, scheduled, as text.
      memory: bytes of HBM on each device: 'arguments', 'temporaries', 'outputs', 'code', and 'aliased', the part of
        the outputs that shares the memory of arguments.
      flops: FLOPs on one device by the compiler's count, which counts the body of a loop once.
      seconds: the time that compiling took.
    """

    hlo: str
    memory: dict[str, int]
    flops: float
    seconds: float

    @property
    def hbm_bytes(self) -> int:
        """The bytes of HBM that the program needs on each device."""
        memory = self.memory
        return memory["arguments"] + memory["temporaries"] + memory["outputs"] - memory["aliased"] + memory["code"]


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment variables `base`, changed for a process that compiles.

    Such a process takes no chips, and not the lock with which libtpu gives them to one process at a time. It asks no
    metadata server and writes no logs.
    """
    # With TPU_ACCELERATOR_TYPE the compiler would look for that chip. LIBTPU_INIT_ARGS holds compiler options that a
    # run would have too, so they are kept.
    kept = {name: value for name, value in base.items() if not name.startswith("TPU_") and name != "XLA_FLAGS"}
    return kept | {
        # Two virtual devices: torch_xla partitions nothing for one, and autograd numbers devices in int8.
        "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "2",
        "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost", "TPU_HOST_BOUNDS": "1,1,1", "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1",
        "TPU_LOG_DIR": "disabled", "TPU_STDERR_LOG_LEVEL": "3",
        "XLA_HLO_DEBUG": "1",  # operations keep the names of their modules
    }


def check_installed() -> None:
    """Raises ImportError, with what to install, unless the compiler is installed in the tested versions."""
    found = {}
    for package in REQUIRED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if found != REQUIRED:
        wanted = ", ".join(f"{package} {number}" for package, number in REQUIRED.items())
        raise ImportError(f"the TPU compiler needs {wanted}; here: "
                          f"{', '.join(f'{package} {number}' for package, number in found.items())}. {INSTALL}")


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """The chip and the shape in a name such as 'v4:4x4x8'.

    Raises:
      ValueError: the name is not a topology.
    """
    kind, _, box = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", box):
        raise ValueError(f"topology: expected {', '.join(CHIPS)}, a colon and a shape, such as v4:4x4x8 or v5e:4x4, "
                         f"got {name!r}")
    shape = tuple(map(int, box.split("x")))
    dimensions = 3 if kind in ("v4", "v5p") else 2
    if len(shape) != dimensions:
        raise ValueError(f"topology: slices of {kind} have {dimensions} dimensions, got {name!r}")
    return CHIPS[kind], shape


def describe_slice(name: str) -> Slice:
    """The slice with this name.

    Raises:
      ValueError: there is no such slice.
    """
    from jax.experimental import topologies
    chip, shape = parse_topology(name)
    bounds = (min(2, shape[0]), min(2, shape[1]), 1)
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chips_per_host_bounds=bounds,
            # A v4 or v5p chip is then one device, as for torch_xla on a TPU VM.
            chip_config_name="megacore" if chip.megacore else "default")
    except Exception as error:
        if type(error).__name__ != "XlaRuntimeError" or "INVALID_ARGUMENT" not in str(error):
            raise
        raise ValueError(f"topology: the compiler knows no {name}: {error}") from error
    devices = description.devices
    return Slice(name, chip, shape, np.array([device.coords for device in devices]),
                 tuple(device.process_index for device in devices), description)


def sharding_text(spec: PartitionSpec, mesh_shape: Mapping[str, int]) -> str:
    """HLO's text for an array that is cut like this over a mesh whose devices are numbered in the mesh's order."""
    cuts = [mesh_axes(cut) for cut in spec]
    used = [axis for cut in cuts for axis in cut]
    if not used:
        return "{replicated}"
    copies = [axis for axis in MESH_AXES if axis not in used]
    devices = np.arange(np.prod(list(mesh_shape.values()))).reshape(list(mesh_shape.values()))
    order = devices.transpose([MESH_AXES.index(axis) for axis in used + copies]).ravel()
    tiles = [int(np.prod([mesh_shape[axis] for axis in cut], dtype=int)) for cut in cuts]
    num_copies = int(np.prod([mesh_shape[axis] for axis in copies], dtype=int))
    last = [num_copies] if num_copies > 1 else []
    return (f"{{devices=[{','.join(map(str, tiles + last))}]{','.join(map(str, order))}"
            f"{' last_tile_dim_replicate' if last else ''}}}")


def compile_program(
    stablehlo: bytes, target: Slice, shardings: Sequence[str], result_shardings: Sequence[str],
    aliases: Mapping[int, int],
) -> Compiled:
    """Compiles a program for all devices of a slice.

    Args:
      stablehlo: a portable artifact with a function `main`.
      target: the devices to compile for.
      shardings: the shardings of main's arguments, as HLO writes them.
      result_shardings: the shardings of its results.
      aliases: a map from arguments to the results that reuse their memory.

    Raises:
      OutOfMemoryError: it does not fit the chip.
    """
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import _jax
    from jaxlib.mlir.dialects import stablehlo as dialect
    ir, devices, begin = mlir.ir, target.description.devices, time.perf_counter()
    with mlir.make_ir_context() as context:
        module = dialect.deserialize_portable_artifact(context, stablehlo)  # type: ignore[attr-defined]
        main = next(operation for operation in module.body.operations if operation.name.value == "main")

        def attributes(sharding: str, alias: int | None = None) -> Any:
            entries = {"mhlo.sharding": ir.StringAttr.get(sharding)}
            if alias is not None:
                entries["tf.aliasing_output"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(32), alias)
            return ir.DictAttr.get(entries)

        main.arg_attrs = ir.ArrayAttr.get(
            [attributes(sharding, aliases.get(number)) for number, sharding in enumerate(shardings)])
        main.attributes["res_attrs"] = ir.ArrayAttr.get([attributes(sharding) for sharding in result_shardings])
        bytecode = io.BytesIO()
        module.operation.write_bytecode(bytecode)
    options = compiler.get_compile_options(
        num_replicas=1, num_partitions=len(devices), use_spmd_partitioning=True,
        device_assignment=np.array([[device.id for device in devices]]))
    options.executable_build_options.use_shardy_partitioner = False  # nor does torch_xla use it
    try:
        executable = devices[0].client.compile(bytecode.getvalue(), _jax.DeviceList(tuple(devices)), options)
    except _jax.XlaRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise parse_out_of_memory(str(error)) from None
        raise
    stats, cost = executable.get_compiled_memory_stats(), executable.cost_analysis()
    memory = {"arguments": stats.argument_size_in_bytes, "temporaries": stats.temp_size_in_bytes,
              "outputs": stats.output_size_in_bytes, "aliased": stats.alias_size_in_bytes,
              "code": stats.generated_code_size_in_bytes}
    flops = (cost[0] if isinstance(cost, list) else cost)["flops"]
    return Compiled(executable.hlo_modules()[0].to_string(), memory, flops, time.perf_counter() - begin)


_USED = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm")
_BUFFER = re.compile(r"Size: ([\d.]+[KMGT]?)\n(.*?)(?=\n\s*={5,}|\Z)", re.DOTALL)
_SINGLE = re.compile(
    r"Allocation \(size=(\d+)\) would exceed memory \(size=(\d+)\).*?shape = '([^']*)'.*?tag = '([^']*)'", re.DOTALL)
_UNITS = {"K": 2.0**-20, "M": 2.0**-10, "G": 1.0, "T": 2.0**10}


def parse_out_of_memory(message: str) -> OutOfMemoryError:
    """Reads libtpu's message about a program that does not fit: the largest buffers, or one that alone is too large."""
    if match := _SINGLE.search(message):
        size = int(match[1]) / 2**30
        return OutOfMemoryError(message.split(" :: ")[0], size, int(match[2]) / 2**30,
                                [Buffer(f"{size:.2f}G", match[3], match[4])])
    used = limit = None
    if match := _USED.search(message):
        used, limit = float(match[1]) * _UNITS[match[2]], float(match[3]) * _UNITS[match[4]]
    buffers = []
    for size, text in _BUFFER.findall(message):
        operator = re.search(r'op_name="([^"]*)"', text)
        shape = re.search(r"Shape: (\S+)", text)
        label = re.search(r"XLA label: (.*)", text)
        operation = operation_name(operator[1]) if operator else label[1] if label else ""
        buffers.append(Buffer(size, shape[1] if shape else "", operation))
    return OutOfMemoryError(message.split("\n")[0], used, limit, buffers)


def versions() -> dict[str, str]:
    """The versions of everything on which the result depends."""
    return {package: version(package) for package in ("torch", "torch_xla", *REQUIRED)}
