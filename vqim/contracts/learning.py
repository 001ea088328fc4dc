"""What is learnt, and by whom: an objective computes the losses of its learners; `training.GradientTask` does the rest.

    objective.compute(leaves, ...) -> Computed      in every micro-batch, with gradients
    objective.advance(arrays, ...) -> Advanced      once a step, after the updates, without
"""
import dataclasses
import re
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.data import Dataset
from vqim.contracts.frozen import Frozen
from vqim.contracts.optimizer import Optimizer, Schedule
from vqim.state.leaf import Spec, State


@dataclasses.dataclass(frozen=True)
class Learner:
    """A network that gradients move, and how.

    Objectives make their learners: a gin file binds what is to be chosen, and names the class without parentheses, as
    in `tokenizer.TokenizerObjective.learner = @training.Learner`.

    Attributes:
      name: the network's, in the state: `params/<name>/...`, `optimizer/<name>/...`.
      module: the network.
      optimizer: of its parameters; an instance of its own.
      learning_rate: by the step of the run, so that one schedule can serve several networks.
      start_step: the optimizer's count of updates (Adam's bias correction) begins there.
      max_gradient_norm: gradients are scaled down to this global norm; None leaves them.
      ema_decay: 0.999, say, keeps an exponential moving average of the parameters (`vqim.optim.ema`), which whoever
        reads the network takes. None reads the parameters themselves.
      trains: a regular expression for the whole name of a parameter or a statistic. What it leaves out stays as it is,
        and costs neither slots nor gradients. A stack of blocks is one parameter.
    """

    name: str
    module: nn.Module
    optimizer: Optimizer
    learning_rate: Schedule
    start_step: int = 0
    max_gradient_norm: float | None = None
    ema_decay: float | None = None
    trains: str = ".*"

    def __post_init__(self) -> None:
        if self.max_gradient_norm is not None and not self.max_gradient_norm > 0:
            raise ValueError(f"max_gradient_norm must be positive or None, got {self.max_gradient_norm}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be None, or at least 0 and less than 1, got {self.ema_decay}")
        if self.start_step < 0:
            raise ValueError(f"start_step must be at least 0, got {self.start_step}")
        try:
            re.compile(self.trains)
        except re.error as error:
            raise ValueError(f"trains must be a regular expression, got {self.trains!r}: {error}") from error


class MakeLearner(Protocol):
    """`Learner` with everything bound but what an objective knows."""

    def __call__(self, *, name: str, module: nn.Module, start_step: int = 0) -> Learner: ...


@dataclasses.dataclass(frozen=True)
class Computed:
    """What one micro-batch comes to.

    Attributes:
      losses: for each learner of the program a scalar, with the graph that made it.
      metrics: scalars to be shown, without gradients; their means over micro-batches are.
      sums: float32 arrays that add up over micro-batches, such as counts; under SPMD they are of the whole batch.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    sums: dict[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Advanced:
    """What a step changes without gradients.

    Attributes:
      arrays: new values by their names in the state. A parameter may be among them; its moving average and its slots
        stay as they are unless they are too.
      metrics: scalars to be shown, which are not means over micro-batches.
    """

    arrays: State = dataclasses.field(default_factory=dict)
    metrics: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class Objective(Protocol):
    """What a run is for: networks, their losses, and what else a step moves.

    Attributes:
      name: 'tokenizer', 'prior' ...: random keys are drawn from it.
      frozen: networks that are not trained, by their names in the state.
    """

    name: str
    frozen: Mapping[str, Frozen]

    def statistics(self) -> Spec:
        """Arrays of its own that gradients do not move, named `<network>/<array>`, besides its modules' statistics."""
        ...

    def check_data(self, data: Dataset) -> None:
        """Raises ValueError unless it can be trained on these data."""
        ...

    def check_batch(self, batch_size: int) -> None:
        """Raises ValueError unless it can be trained on (micro-)batches of this size."""
        ...

    def program(self, step: int) -> str:
        """The name of the program that makes update number `step`: 'train' where there is one for all steps.

        Steps that compute different things, such as a regulariser now and then, are different programs. Each is
        compiled once.
        """
        ...

    def learners(self, program: str | None = None) -> tuple[Learner, ...]:
        """Those that a program moves; of all programs unless one is named. The first is the main one."""
        ...

    def host_scalars(self, step: int) -> dict[str, float]:
        """Numbers that change from step to step, for `Context.scalars`, besides learning rates."""
        ...

    def compute(
        self, leaves: Mapping[str, State], arrays: State, batch: dict[str, Tensor], context: Context, program: str,
    ) -> Computed:
        """The losses of a (micro-)batch.

        Args:
          leaves: for each learner of the program its network's arrays, named as in its module; those that are trained
            are leaves of the autograd graph.
          arrays: the whole state, to be read.
          batch: device arrays.
          context: with a key, and with all host scalars, 'step' and 'seed' as `context.scalars`.
          program: which one.
        """
        ...

    def advance(self, arrays: State, computed: Computed, context: Context, program: str) -> Advanced:
        """What changes without gradients, from the whole batch; it counts only where the step is healthy.

        Args:
          arrays: the whole state after the updates, to be read.
          computed: the losses' and metrics' means, and the sums, over micro-batches.
          context: as in `compute`, its key that of the step.
          program: which one.
        """
        ...


class OneLearner:
    """What objectives have in common that train one network by one program: a base class.

    Attributes:
      learner: the only one.
    """

    learner: Learner
    frozen: Mapping[str, Frozen] = {}

    def statistics(self) -> Spec:
        """None but its module's."""
        return {}

    def check_batch(self, batch_size: int) -> None:
        """Any will do."""

    def program(self, step: int) -> str:
        """One for all steps."""
        return "train"

    def learners(self, program: str | None = None) -> tuple[Learner, ...]:
        """The only one."""
        return (self.learner,)

    def host_scalars(self, step: int) -> dict[str, float]:
        """None."""
        return {}

    def advance(self, arrays: State, computed: Computed, context: Context, program: str) -> Advanced:
        """Nothing."""
        return Advanced()


@runtime_checkable
class Advancing(Protocol):
    """A module that has statistics, or changes its parameters without gradients. It is called as modules are."""

    def advance(self, sums: Mapping[str, Tensor], context: Context) -> Advanced:
        """New values of some of its arrays, by their names in the module, from the sums that its forward pass gave."""
        ...
