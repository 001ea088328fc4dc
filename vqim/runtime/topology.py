"""The XLA runtime for chips that this machine does not have: it records programs instead of running them.

`launch.compile` uses it to ask the TPU compiler whether a run would fit a slice of chips, and how fast it would be. The
run's own code builds its programs as always; only this runtime is different. Arrays have shapes but no data.

To know before: torch_xla records operations on lazy tensors until `_run` is called, where `XlaRuntime` executes them.
`TopologyRuntime._run` instead saves the recorded program (`Traced`) and turns its results into placeholders, from which
the next program starts. Read `XlaRuntime` in xla.py first, then `TopologyRuntime` and its `_run`, then
`Traced.compile`. `named_modules` is separate: it adds module names to operations, so that reports can show where the
time goes.
"""
import contextlib
import dataclasses
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch_xla
import torch_xla.core.xla_builder as xb
import torch_xla.runtime as xr
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from vqim.contracts.runtime import Fill, Hosts, Shards
from vqim.runtime.arrays import scalar, to_tensor
from vqim.runtime.hosts import OneHost
from vqim.runtime.partition import PartitionSpec, part_of
from vqim.runtime.settings import XlaSettings
from vqim.runtime.tpu_compiler import Buffer, Compiled, OutOfMemoryError, Slice, compile_program, sharding_text
from vqim.runtime.xla import Devices, XlaRuntime
from vqim.runtime.xla_kernels import batch_spec
from vqim.state.leaf import Leaf


@dataclasses.dataclass(frozen=True)
class Placeholder:
    """An array in a program, without its data.

    Attributes:
      name: 'params/...' and so on for the state, 'batch/...', 'scalars/...', 'result', 'made on the device'.
      spec: how it is cut.
      shape: the shape of the whole array.
      dtype: its dtype.
    """

    name: str
    spec: PartitionSpec
    shape: tuple[int, ...]
    dtype: torch.dtype

    def part(self, mesh_shape: Mapping[str, int]) -> Buffer:
        """The part that each device holds."""
        first = part_of(self.shape, self.spec, mesh_shape, dict.fromkeys(mesh_shape, 0))
        shape = [index.stop - index.start for index in first]
        gib = math.prod(shape) * self.dtype.itemsize / 2**30
        return Buffer(f"{gib:.2f}G", f"{str(self.dtype).removeprefix('torch.')}{shape}", self.name)


@dataclasses.dataclass(frozen=True)
class Traced:
    """A program as torch_xla would hand it to the compiler.

    Attributes:
      name: the name of the function that was traced.
      stablehlo: the program, as a portable artifact.
      arguments: the arguments in order; None is a constant that was made on the host.
      results: the results in order.
      aliases: a map from arguments to the results that reuse their memory.
    """

    name: str
    stablehlo: bytes
    arguments: list[Placeholder | None]
    results: list[Placeholder]
    aliases: dict[int, int]

    def compile(self, target: Slice, mesh_shape: Mapping[str, int]) -> Compiled:
        """See `compile_program`."""
        shardings = [sharding_text(argument.spec if argument else (), mesh_shape) for argument in self.arguments]
        result_shardings = [sharding_text(result.spec, mesh_shape) for result in self.results]
        try:
            return compile_program(self.stablehlo, target, shardings, result_shardings, self.aliases)
        except OutOfMemoryError as error:
            if not error.buffers:  # the arguments alone are too large, and the compiler does not list them
                parts = [argument.part(mesh_shape) for argument in self.arguments if argument]
                error.buffers = sorted(parts, key=lambda part: -float(part.size[:-1]))[:10]
            raise


_NOT_RUN = ("expected programs to be traced alone, got a request for values: for a topology nothing is run. Run it by "
            "--runtime=torch or --runtime=xla on this machine's devices")


class NothingComputedError(RuntimeError):
    """A value was requested where programs are only recorded."""


class TopologyRuntime(XlaRuntime):
    """Stands for the chips in a slice; `traced` has every program that would have run, once.

    It does what a process on the first host would do. Arrays are torch_xla's placeholders: they have a shape, take no
    memory, and may be updated in place.
    """

    def __init__(self, settings: XlaSettings, target: Slice):
        """Takes a slice; see `XlaRuntime`."""
        if xr.global_runtime_device_count() != 2:
            raise RuntimeError("tracing for a topology needs the environment of vqim.runtime.tpu_compiler")
        first_host = tuple(number for number, host in enumerate(target.hosts) if host == 0)
        super().__init__(settings, Devices(target.chip, target.num_devices, first_host, 0, len(set(target.hosts))))
        self.target = target
        self.traced: list[Traced] = []
        self._tracing = ""
        self._placeholders: dict[int, Placeholder] = {}
        self._numbers = WeakTensorKeyDictionary()

    def place(self, name: str, leaf: Leaf, fill: Fill) -> Tensor:
        """See `Runtime.place`; `fill` is not called."""
        return self._new(name, self.partition.spec(name, leaf, self.mesh_shape), leaf.shape, leaf.dtype)

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """See `Runtime.put`; the values do not matter."""
        return {name: self._new(f"batch/{name}", batch_spec(array.ndim), self._whole_shape(name, array),
                                to_tensor(array[:0]).dtype)
                for name, array in batch.items()}

    def scalars(self, values: Mapping[str, int | float]) -> dict[str, Tensor]:
        """See `Runtime.scalars`; the values do not matter."""
        return {name: self._new(f"scalars/{name}", (), (), scalar(value).dtype)
                for name, value in values.items()}

    def cut(self, arrays: Sequence[Tensor], axis: int) -> list[Tensor]:
        """See `Runtime.cut`."""
        return [self._new("made on the device", batch_spec(array.ndim, axis), array.shape, array.dtype)
                for array in arrays]

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that is recorded at its first call; later calls return the first call's results."""
        trace = super().compile(function)
        results: list[Any] = []
        name = getattr(getattr(function, "func", function), "__qualname__", "").split(".<locals>")[0]

        def run(*args: Any) -> Any:
            if not results:
                self._tracing = name
                with named_modules():
                    results.append(trace(*args))
            return results[0]

        return run

    def fetch(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """Raises NothingComputedError: no values exist."""
        raise NothingComputedError(_NOT_RUN)

    def shards(self, tensor: Tensor) -> Shards:
        """Raises NothingComputedError: no values exist."""
        raise NothingComputedError(_NOT_RUN)

    def describe(self) -> dict[str, Any]:
        """See `Runtime.describe`."""
        return {**super().describe(), "device": self.target.name}

    def _meet(self) -> Hosts:
        """One host: the other hosts do not exist."""
        return OneHost()

    def _run(self, tensors: list[Tensor]) -> None:
        """Records the program that computes the pending tensors among `tensors`; they are its results.

        They then become placeholders, so that the next program starts from arrays, as it would on the chips.
        """
        pending = list({id(tensor): tensor for tensor in tensors
                        if not torch_xla._XLAC._is_placecholder(tensor)}.values())
        if not pending:
            return
        numbers, _ = torch_xla._XLAC._get_tensors_xla_device_data_node(pending)
        results, aliases = [], {}
        for position, tensor in enumerate(pending):
            number = self._numbers.get(tensor)
            results.append(self._placeholders[number] if number is not None else Placeholder(
                "result", (None,) * tensor.ndim, tuple(tensor.shape), tensor.dtype))
            if number in numbers:
                aliases[numbers.index(number)] = position
        stablehlo = torch_xla._XLAC._get_stablehlo(pending, str(self.device), [], True)
        arguments = [self._placeholders.get(number) for number in numbers]
        self.traced.append(Traced(self._tracing, stablehlo, arguments, results, aliases))
        for tensor, placeholder in zip(pending, results, strict=True):
            new = xb.create_placeholder_tensor(tensor.shape, tensor.dtype)
            torch_xla._XLAC._replace_xla_tensor(tensor, new)
            self._remember(tensor, placeholder)

    def _new(self, name: str, spec: PartitionSpec, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        tensor = xb.create_placeholder_tensor(tuple(shape), dtype)
        self._remember(tensor, Placeholder(name, spec, tuple(shape), dtype))
        return tensor

    def _remember(self, tensor: Tensor, placeholder: Placeholder) -> None:
        """Stores a placeholder under torch_xla's number for its data, by which programs name their arguments."""
        (number,), _ = torch_xla._XLAC._get_tensors_xla_device_data_node([tensor])
        self._placeholders[number] = placeholder
        self._numbers[tensor] = number


@contextlib.contextmanager
def named_modules() -> Iterator[None]:
    """Adds the names of their modules to operations in XLA's metadata, also in the backward pass."""
    stack: list[tuple[nn.Module, str, Any]] = []
    backward = threading.local()

    def enter(module: nn.Module, args: Any) -> None:
        parent, path = stack[-1][:2] if stack else (None, "")
        name = next((name for name, child in parent.named_modules() if child is module), "") if parent else ""
        name = name.removeprefix("module").strip(".").replace(".", "/")  # `nn.module.apply` calls a module `module`
        path = f"{path}/{name}".strip("/") if name else path
        stack.append((module, path, torch_xla._XLAC.profiler.scope_pusher(name) if name else None))

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        path = stack.pop()[1]
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.grad_fn is not None and path:
                mark(leaf.grad_fn, path)

    def mark(node: Any, path: str) -> None:
        """Marks a module's backward nodes, except those that a module inside it has marked."""
        nodes = [node]
        while nodes:
            node = nodes.pop()
            if node is None or "modules" in node.metadata:
                continue
            node.metadata["modules"] = path
            node.register_prehook(lambda grads: push(path))
            node.register_hook(lambda inputs, outputs: pop())
            nodes += [after for after, _ in node.next_functions]

    def push(path: str) -> None:
        backward.scopes = getattr(backward, "scopes", [])
        backward.scopes.append(torch_xla._XLAC.profiler.scope_pusher(f"backward/{path}"))

    def pop() -> None:
        backward.scopes.pop()

    handles = [module_hooks.register_module_forward_pre_hook(enter),
               module_hooks.register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
