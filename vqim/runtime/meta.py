"""Steps on arrays without data: shapes and operation counts, for dry runs and for measuring speed."""
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vqim.contracts.task import Task
from vqim.runtime.torch import TorchKernels
from vqim.state.leaf import Spec


class MetaKernels(TorchKernels):
    """The torch runtime's kernels, with random draws that have a shape but no values."""

    def uniform(self, key: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """An array without data."""
        return torch.empty(shape, device="meta")

    def keep_mask(self, key: Tensor, rate: float, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """An array without data."""
        return torch.empty(shape, dtype=torch.bool, device="meta")


class _Counter(TorchDispatchMode):
    """Counts by torch's formulas, in 0.6 of the time of FlopCounterMode, which keeps a tree of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula: Callable[..., int] | None = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


# A run is rehearsed before its first step, which asks for the same counts.
_known: WeakKeyDictionary[Task, dict[Any, tuple[int, tuple[str, ...]]]] = WeakKeyDictionary()


def step_flops(task: Task, spec: Spec, batch: dict[str, Tensor], program: str = "train") -> int:
    """Floating-point operations in the matrix products and convolutions of a training step, on all devices together.

    A multiplication and an addition count as two.

    Args:
      task: the task whose `train_step` is run on the meta device.
      spec: the spec of its state.
      batch: the arrays in a whole batch; only their shapes and dtypes matter.
      program: the name of the program that makes the step.

    Raises:
      Exception: any error that the task raises for arrays with these shapes.
    """
    return _tried(task, spec, batch, program)[0]


def step_metrics(task: Task, spec: Spec, batch: dict[str, Tensor], program: str = "train") -> tuple[str, ...]:
    """The names of what a training step measures; for the arguments see `step_flops`."""
    return _tried(task, spec, batch, program)[1]


def _tried(task: Task, spec: Spec, batch: dict[str, Tensor], program: str) -> tuple[int, tuple[str, ...]]:
    """The operations of a step, and the names of its metrics; known from the first call on."""
    key = (program, tuple((name, array.shape, array.dtype) for name, array in batch.items()))
    known = _known.setdefault(task, {})
    if key not in known:
        known[key] = _try(task, spec, batch, program)
    return known[key]


def _try(task: Task, spec: Spec, batch: dict[str, Tensor], program: str) -> tuple[int, tuple[str, ...]]:
    state = {name: torch.empty(leaf.shape, dtype=leaf.dtype, device="meta") for name, leaf in spec.items()}
    arrays = {name: torch.empty(array.shape, dtype=array.dtype, device="meta") for name, array in batch.items()}
    scalars = {name: torch.empty((), device="meta") for name in task.host_scalars(0)}
    scalars |= {name: torch.empty((), dtype=torch.int32, device="meta") for name in ("step", "seed")}
    with _Counter() as counter:
        metrics = task.train_step(state, arrays, scalars, MetaKernels(), program)
    return counter.flops, tuple(metrics)
