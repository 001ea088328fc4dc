"""What the training loop, and whatever traces a training step, asks of a task."""
from typing import Any, Protocol

from torch import Tensor

from vqim.state.leaf import Spec, State


class Task(Protocol):
    """A thing to be trained: networks, their losses and their optimizers.

    Attributes:
      checked: the tensors whose health each step checks, in the order of the flags (`vqim.state.health`).
      num_micro_batches: into so many parts a step cuts its batch.
    """

    checked: list[str]
    num_micro_batches: int

    def init_spec(self) -> Spec:
        """Describes all arrays of the state, the flags of `vqim.state.health.health_spec(checked)` among them."""
        ...

    def check_data(self, data: Any) -> None:
        """Raises ValueError unless the task can be trained on these data."""
        ...

    def host_scalars(self, step: int) -> dict[str, float]:
        """Numbers that the step needs and that change from step to step: learning rates."""
        ...

    def program(self, step: int) -> str:
        """The name of the program that makes update number `step`: 'train' in a task that has one for all steps.

        Steps that compute different things, such as a regulariser now and then, are different programs. Each is
        compiled once.
        """
        ...

    def train_step(
        self, state: State, batch: dict[str, Tensor], scalars: dict[str, Tensor], kernels: Any, program: str = "train",
    ) -> dict[str, Tensor]:
        """Makes one update, in place, of arrays of `state` and of nothing else.

        Args:
          state: the arrays of `init_spec`.
          batch: device arrays of one batch.
          scalars: `host_scalars`, and 'step' (from 0) and 'seed' as int32, as scalar tensors.
          kernels: the runtime's `vqim.nn.context.Kernels`.
          program: which one, by its name.

        Returns:
          Scalar tensors by the names under which summaries show them; 'loss' is one of them. Programs may differ in
          the names.
        """
        ...

    def describe(self) -> dict[str, int]:
        """Numbers of parameters, by part."""
        ...


class Evaluator(Protocol):
    """Something to be measured now and then, and at the end of training.

    Attributes:
      every: how many steps lie between two measurements; 0 for the end alone.
    """

    every: int

    def __call__(self, task: Any, data: Any, state: State, runtime: Any) -> dict[str, Any]:
        """Measures a task's state, on the experiment's data (its `evaluation(batch_size, ...)`, most often).

        Returns: results by the names under which summaries show them: floats, images (uint8 [B, H, W, 3] arrays),
        histograms (`summaries.Histogram`) or text."""
        ...
