"""What the training loop, and whatever traces a training step, asks of a task."""
from typing import Protocol

import torch
from torch import Tensor

from vqim.contracts.context import Kernels
from vqim.contracts.learning import Objective
from vqim.state.leaf import Spec, State


class Task(Protocol):
    """An objective and the way to it: `training.GradientTask` is the one that there is.

    Attributes:
      objective: what the run is for.
      checked: the tensors whose health each step checks, in the order of the flags (`vqim.state.health`).
      num_micro_batches: into so many parts a step cuts its batch.
      dtype: of computation in training, and of what evaluation does with the networks that are trained.
    """

    objective: Objective
    checked: list[str]
    num_micro_batches: int
    dtype: torch.dtype

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
          kernels: the runtime's.
          program: which one, by its name (`Objective.program`).

        Returns:
          Scalar tensors by the names under which summaries show them; 'loss' is one of them. Programs may differ in
          the names.
        """
        ...

    def describe(self) -> dict[str, int]:
        """Numbers of parameters, by part."""
        ...
