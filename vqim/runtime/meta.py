"""Steps on arrays without data: shapes and operation counts, for dry runs and for measuring speed."""
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vqim.contracts.task import Task
from vqim.runtime.torch import TorchKernels
from vqim.state.leaf import Spec


class MetaKernels(TorchKernels):
    """The torch runtime's kernels, with random draws that have a shape but no values."""

    def uniform(self, key: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """An array without data."""
        return torch.empty(shape, device="meta")


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
    state = {name: torch.empty(leaf.shape, dtype=leaf.dtype, device="meta") for name, leaf in spec.items()}
    arrays = {name: torch.empty(array.shape, dtype=array.dtype, device="meta") for name, array in batch.items()}
    scalars = {name: torch.empty((), device="meta") for name in task.host_scalars(0)}
    scalars |= {name: torch.empty((), dtype=torch.int32, device="meta") for name in ("step", "seed")}
    with FlopCounterMode(display=False) as counter:
        task.train_step(state, arrays, scalars, MetaKernels(), program)
    return counter.get_total_flops()
