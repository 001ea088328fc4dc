"""Objectives and learners: an objective computes its learners' losses, and `training.GradientTask` does the rest.

    objective.compute(leaves, ...) -> Computed      in every micro-batch, with gradients
    objective.advance(arrays, ...) -> Advanced      once a step, after the updates, without
"""
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.data import Dataset
from vqim.contracts.frozen import Frozen
from vqim.contracts.optimizer import Optimizer, Schedule
from vqim.state.leaf import Spec, State


@dataclasses.dataclass(frozen=True)
class Learner:
    """A network that is trained with gradients, and how it is trained.

    Objectives make their learners. A gin file binds the settings, and names the class without parentheses:
    `tokenizer.TokenizerObjective.learner = @training.Learner`.

    Attributes:
      name: the network's name in the state: `params/<name>/...`, `optimizer/<name>/...`.
      module: the network.
      optimizer: the optimizer for its parameters; not shared with another learner.
      learning_rate: a schedule over the steps of the run, so that several networks can use the same schedule.
      start_step: the step of the run at which the optimizer starts to count updates (for Adam's bias correction).
      max_gradient_norm: gradients are scaled down to this global norm; None leaves them.
      ema_decay: decay of an exponential moving average of the parameters (`vqim.optim.ema`), such as 0.999. Evaluation
        and other readers of the network then use the average. None keeps no average.
      trains: a regular expression for the whole name of a parameter or a statistic. All others stay as they are,
        without slots or gradients. A stack of blocks is one parameter.
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
    """The class `Learner`, with all arguments bound except those that an objective gives."""

    def __call__(self, *, name: str, module: nn.Module, start_step: int = 0) -> Learner: ...


@dataclasses.dataclass(frozen=True)
class Computed:
    """The result of one micro-batch.

    Attributes:
      losses: one scalar for each learner in the program, with its autograd graph.
      metrics: scalars to be shown, without gradients; what is shown is their means over micro-batches.
      sums: float32 arrays that add up over micro-batches, such as counts; under SPMD they cover the whole batch.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    sums: dict[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Advanced:
    """What a step changes without gradients.

    Attributes:
      arrays: new values by their names in the state. A parameter may be among them. Its moving average and its slots
        do not change unless they are listed too.
      metrics: scalars to be shown, which are not means over micro-batches.
    """

    arrays: State = dataclasses.field(default_factory=dict)
    metrics: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class Objective(Protocol):
    """What a run trains: networks, their losses, and other arrays that a step changes.

    Attributes:
      name: 'tokenizer', 'prior' ...; random keys depend on it.
      frozen: networks that are not trained, by their names in the state.
    """

    name: str
    frozen: Mapping[str, Frozen]

    def statistics(self) -> Spec:
        """Its own arrays without gradients, named `<network>/<array>`, besides its modules' statistics."""
        ...

    def check_data(self, data: Dataset) -> None:
        """Raises ValueError unless it can be trained on these data."""
        ...

    def check_batch(self, batch_size: int) -> None:
        """Raises ValueError unless it can be trained on (micro-)batches of this size."""
        ...

    def program(self, step: int) -> str:
        """The name of the program for update number `step`: 'train' where all steps use the same one.

        Steps that compute different things, such as a regulariser now and then, are different programs. Each is
        compiled once.
        """
        ...

    def learners(self, program: str | None = None) -> tuple[Learner, ...]:
        """The learners that a program trains, or all learners where none is named. The first is the main one."""
        ...

    def host_scalars(self, step: int) -> dict[str, float]:
        """Numbers that change from step to step, for `Context.scalars`; learning rates are not among them."""
        ...

    def compute(
        self, leaves: Mapping[str, State], arrays: State, batch: dict[str, Tensor], context: Context, program: str,
    ) -> Computed:
        """The losses of a (micro-)batch.

        Args:
          leaves: the arrays of each learner's network, named as in its module; arrays that are trained are leaves of
            the autograd graph.
          arrays: the whole state, which is only read.
          batch: device arrays.
          context: a context with a key, and with all host scalars, 'step' and 'seed' in `context.scalars`.
          program: the name of the program.
        """
        ...

    def advance(self, arrays: State, computed: Computed, context: Context, program: str) -> Advanced:
        """New values of what changes without gradients, from the whole batch; unused where the step is not healthy.

        Args:
          arrays: the whole state after the updates, which is only read.
          computed: means of the losses and metrics over micro-batches, and the sums.
          context: as in `compute`, but of the whole step: with its key, and without a micro-batch.
          program: the name of the program.
        """
        ...


class OneLearner:
    """Base class for objectives that train one network with one program.

    Attributes:
      learner: the only learner.
    """

    learner: Learner
    frozen: Mapping[str, Frozen] = {}

    def statistics(self) -> Spec:
        """None, besides its module's statistics."""
        return {}

    def check_batch(self, batch_size: int) -> None:
        """Accepts any batch size."""

    def program(self, step: int) -> str:
        """The same program for all steps."""
        return "train"

    def learners(self, program: str | None = None) -> tuple[Learner, ...]:
        """The only learner."""
        return (self.learner,)

    def host_scalars(self, step: int) -> dict[str, float]:
        """No numbers."""
        return {}

    def advance(self, arrays: State, computed: Computed, context: Context, program: str) -> Advanced:
        """Changes nothing."""
        return Advanced()


@runtime_checkable
class ReadsTokens(Protocol):
    """An objective that may be given a token cache in place of images."""

    def check_tokens(self, data: Dataset, read: Callable[[str], np.ndarray] | None) -> None:
        """Raises ValueError unless a cache was written by the tokenizer of this run.

        That is the one in the run's own checkpoint, of which `read` gives the arrays by name, whatever its run has
        become since. A new run, which has none (`read` is None), takes the tokenizer from that run.
        """
        ...


@runtime_checkable
class Advancing(Protocol):
    """A module that has statistics, or changes its parameters without gradients."""

    def advance(self, sums: Mapping[str, Tensor], context: Context) -> Advanced:
        """New values for some of its arrays, by their names in the module, from the sums of its forward pass."""
        ...


@runtime_checkable
class Rebuilding(Protocol):
    """A module that now and then makes some of its arrays anew, in a program of its own."""

    def is_due(self, step: int) -> bool:
        """Whether it does so at the end of the update number `step`."""
        ...

    def rebuild(self, sums: Mapping[str, Tensor], context: Context) -> Advanced:
        """In such a step, in place of `Advancing.advance`: the new values, by their names in the module."""
        ...
