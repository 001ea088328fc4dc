"""What a runtime does for the rest of vqim, and what the processes of a run tell each other."""
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

    Any thread may call, but one thread of a process at a time with one name.

    Attributes:
      process_index: which of them this is.
      process_count: how many there are.
    """

    process_index: int
    process_count: int

    def wait(self, name: str) -> None:
        """Returns when every process has called it with this name, as often as this one has; TimeoutError else."""
        ...

    def post(self, name: str, text: str) -> None:
        """Leaves a text for all to see. The first one posted under a name stays."""
        ...

    def read(self, name: str) -> str | None:
        """What has been posted under a name; None if nothing has. Does not wait."""
        ...

    def get(self, name: str) -> str:
        """What has been posted under a name; waits for it, TimeoutError if it does not come."""
        ...


@dataclasses.dataclass(frozen=True)
class Shards:
    """The parts of one array that this process is the one to write.

    Attributes:
      shape: of the whole array.
      dtype: NumPy's, bfloat16 as ml_dtypes has it.
      parts: (where, values) pairs; over all processes they cover the array once.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: list[tuple[Index, np.ndarray]]


class Runtime(Protocol):
    """Places a state and batches on devices, runs steps, and brings results back.

    Attributes:
      kernels: the operations of `vqim.nn.context.Kernels`, as this runtime does them.
      process_index, process_count: of this process among those of the run.
      hosts: how these processes talk to each other without their devices.
      num_batch_shards: a batch's size, over all processes, has to be a multiple of it.
      peak_flops: floating-point operations a second of all devices; None where nobody says.
    """

    process_index: int
    process_count: int
    hosts: Hosts
    num_batch_shards: int
    peak_flops: float | None

    @property
    def kernels(self) -> Kernels: ...

    def place(self, name: str, leaf: Leaf, fill: Fill) -> Tensor:
        """A device array of the state, each part filled by `fill(index)`."""
        ...

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """This process's part of a batch as device arrays of the whole batch, cut along the first dimension.

        The whole batch has the parts in the order of the processes.
        """
        ...

    def scalars(self, values: Mapping[str, int | float]) -> dict[str, Tensor]:
        """Numbers that change from step to step, as int32 and float32 scalars that never cause a compilation."""
        ...

    def cut(self, arrays: Sequence[Tensor], axis: int) -> list[Tensor]:
        """Arrays that were just made on the device, cut along one dimension as batches are along their first."""
        ...

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function on device arrays, made one program. It may update arrays in place; it reads nothing back.

        Its arguments hold the arrays in dicts, lists, tuples and dataclasses, its result in dicts, lists and tuples.
        """
        ...

    def fetch(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """Host copies of what programs returned, in one transfer where possible; waits for what computes them."""
        ...

    def shards(self, tensor: Tensor) -> Shards:
        """Host copies of what this process has to write of a state array; later steps do not change them."""
        ...

    def counters(self) -> dict[str, float]:
        """What has been counted since the process began, by the names of the summaries: compilations, transfers ..."""
        ...

    def profile(self, directory: str | os.PathLike[str]) -> AbstractContextManager[Any]:
        """Traces what is done inside, into a TensorBoard log directory."""
        ...

    def describe(self) -> dict[str, Any]:
        """What it runs on, for logs, metadata and reports: runtime, device, mesh, versions."""
        ...
