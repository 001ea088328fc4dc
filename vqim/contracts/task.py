"""What the training loop, and code that traces a training step, needs from a task."""
from typing import Protocol

import torch
from torch import Tensor

from vqim.contracts.context import Kernels
from vqim.contracts.learning import Objective
from vqim.state.leaf import Spec, State


class Task(Protocol):
    """An objective and how it is trained. `training.GradientTask` is the only implementation.

    Attributes:
      objective: what the run is for.
      checked: the tensors whose health each step checks, in the order of the flags (`vqim.state.health`).
      num_micro_batches: the number of parts into which a step cuts its batch.
      dtype: the dtype in which networks compute in training, and a prior also where it is measured or drawn from.
      evaluation_dtype: the dtype in which tokenizers encode and decode, and a classifier's run classifies, outside
        training.
    """

    objective: Objective
    checked: list[str]
    num_micro_batches: int
    dtype: torch.dtype
    evaluation_dtype: torch.dtype

    def init_spec(self) -> Spec:
        """Describes all arrays of the state, the flags of `vqim.state.health.health_spec(checked)` among them."""
        ...

    def host_scalars(self, step: int) -> dict[str, float]:
        """Numbers that the step needs and that change from step to step: learning rates."""
        ...

    def train_step(
        self, state: State, batch: dict[str, Tensor], scalars: dict[str, Tensor], kernels: Kernels,
        program: str = "train",
    ) -> dict[str, Tensor]:
        """Makes one update, in place, of arrays of `state` and of nothing else.

        Args:
          state: the arrays of `init_spec`.
          batch: device arrays of one batch.
          scalars: `host_scalars`, and 'step' (from 0) and 'seed' as int32, as scalar tensors.
          kernels: the runtime's kernels.
          program: the name of the program (`Objective.program`).

        Returns:
          Scalar tensors by their names in the summaries; 'loss' is one of them. Different programs may return
          different names.
        """
        ...

    def describe(self) -> dict[str, int]:
        """Numbers of parameters, by part."""
        ...
