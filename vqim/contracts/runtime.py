"""What a runtime does for the rest of vqim, and how the processes of a run exchange messages."""
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from vqim.contracts.context import Kernels
from vqim.state.init import Index
from vqim.state.leaf import Leaf

Fill = Callable[[Index], np.ndarray]


class Hosts(Protocol):
    """The processes of a run.

    Any thread may call these methods, but in one process two threads may not use the same name at the same time.

    Attributes:
      process_index: the index of this process.
      process_count: the number of processes.
    """

    process_index: int
    process_count: int

    def wait(self, name: str) -> None:
        """Returns when every process has called it with this name, as often as this process; else TimeoutError."""
        ...

    def post(self, name: str, text: str) -> None:
        """Publishes a text to all processes. The first text posted under a name stays."""
        ...

    def read(self, name: str) -> str | None:
        """The text posted under a name, or None; does not wait."""
        ...

    def get(self, name: str) -> str:
        """The text posted under a name; waits for it, and raises TimeoutError if it does not come."""
        ...

    def count(self, name: str, more: int = 0) -> int:
        """Adds to the count under a name, which begins at 0 and which all processes share, and returns it."""
        ...


@dataclasses.dataclass(frozen=True)
class Shards:
    """The parts of one array that this process has to write.

    Attributes:
      shape: the shape of the whole array.
      dtype: NumPy's dtype; for bfloat16 that of ml_dtypes.
      parts: (where, values) pairs; the pairs of all processes cover the array once.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: list[tuple[Index, np.ndarray]]


class Runtime(Protocol):
    """Places a state and batches on devices, runs steps, and brings results back.

    Attributes:
      kernels: this runtime's `vqim.contracts.context.Kernels`.
      process_index: the index of this process in the run.
      process_count: the number of processes in the run.
      hosts: how these processes talk to each other without their devices.
      num_batch_shards: the batch size over all processes has to be a multiple of this.
      peak_flops: floating-point operations per second of all devices together; None where it is not known.
    """

    process_index: int
    process_count: int
    hosts: Hosts
    num_batch_shards: int
    peak_flops: float | None

    @property
    def kernels(self) -> Kernels: ...

    def place(self, name: str, leaf: Leaf, fill: Fill) -> Tensor:
        """A device array for the state, each part filled by `fill(index)`."""
        ...

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Makes device arrays of the whole batch, cut along the first dimension, from this process's part.

        The whole batch holds the parts in the order of the processes.
        """
        ...

    def scalars(self, values: Mapping[str, int | float]) -> dict[str, Tensor]:
        """Numbers that change from step to step, as int32 and float32 scalars that never cause a compilation."""
        ...

    def cut(self, arrays: Sequence[Tensor], axis: int) -> list[Tensor]:
        """Arrays that were just made on the device, cut along one dimension as batches are along their first."""
        ...

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles a function on device arrays to one program. It may update arrays in place; it reads nothing back.

        Its arguments hold the arrays in dicts, lists, tuples and dataclasses, its result in dicts, lists and tuples.
        """
        ...

    def fetch(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """Host copies of what programs returned, in one transfer where possible; waits until they are computed."""
        ...

    def shards(self, tensor: Tensor) -> Shards:
        """Host copies of the parts of a state array that this process writes; later steps do not change them."""
        ...

    def counters(self) -> dict[str, float]:
        """Counts since the process began, by their names in the summaries: compilations, transfers ..."""
        ...

    def profile(self, directory: str | os.PathLike[str]) -> AbstractContextManager[Any]:
        """A context manager that writes a trace of what runs inside it to a TensorBoard log directory."""
        ...

    def describe(self) -> dict[str, Any]:
        """What it runs on, for logs, metadata and reports: runtime, device, mesh, versions."""
        ...
