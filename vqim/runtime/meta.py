"""Steps on arrays without data: shapes and operation counts, for dry runs and for measuring speed."""
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vqim.contracts.task import Task
from vqim.runtime.torch import TorchKernels
from vqim.state.leaf import Spec


class MetaKernels(TorchKernels):
    """The torch runtime's kernels, with random draws that have a shape and no values."""

    def uniform(self, key: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """An array without data."""
        return torch.empty(shape, device="meta")


def step_flops(task: Task, spec: Spec, batch: dict[str, Tensor], program: str = "train") -> int:
    """Floating-point operations of the matrix products and convolutions of one training step, all devices together.

    A multiplication and an addition count as two.

    Args:
      task: its `train_step` is run on the meta device.
      spec: of its state.
      batch: arrays of a whole batch; only their shapes and dtypes matter.
      program: which of the task's programs makes the step.

    Raises:
      what the task raises for arrays of these shapes.
    """
    state = {name: torch.empty(leaf.shape, dtype=leaf.dtype, device="meta") for name, leaf in spec.items()}
    arrays = {name: torch.empty(array.shape, dtype=array.dtype, device="meta") for name, array in batch.items()}
    scalars = {name: torch.empty((), device="meta") for name in task.host_scalars(0)}
    scalars |= {name: torch.empty((), dtype=torch.int32, device="meta") for name in ("step", "seed")}
    with FlopCounterMode(display=False) as counter:
        task.train_step(state, arrays, scalars, MetaKernels(), program)
    return counter.get_total_flops()
