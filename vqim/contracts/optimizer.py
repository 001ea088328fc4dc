"""What a training step needs from an optimizer and from a schedule."""
from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from vqim.state.leaf import Spec, State


class Schedule(Protocol):
    """A number for each step, computed on the host in double precision: a learning rate, a loss term's weight."""

    def __call__(self, step: int) -> float:
        """The value for update number `step`, counted from 0."""
        ...


class Optimizer(Protocol):
    """Turns gradients into new parameters, keeping its memory in arrays called slots.

    One optimizer serves one network, since `init_spec` also tells it the axes of each parameter.
    """

    def init_spec(self, params: Spec, untrained: Iterable[str] = ()) -> Spec:
        """Describes the slots for these parameters, named `<slot>/<parameter>`.

        A slot has the axes of its parameter, or some of them, so that one set of partition rules places both.

        Args:
          params: the parameters that are trained.
          untrained: names of the network's other parameters, which have no slots; settings may still name them.
        """
        ...

    def update(
        self, params: State, grads: State, slots: State, *, learning_rate: Tensor, step: Tensor, keep: Tensor,
    ) -> dict[str, Tensor]:
        """Makes one update of `params` and `slots`, in place; reads nothing back to the host.

        Args:
          params: the parameters, changed in place.
          grads: their gradients, under the same names.
          slots: the arrays of `init_spec`, changed in place.
          learning_rate: float32 scalar.
          step: int32 scalar, the number of this update, counted from 0.
          keep: bool scalar; where it is False, no parameter and no slot changes, whatever the gradients hold.

        Returns:
          Scalars to be shown: `update_norm`, the l2 norm of the change to all parameters.
        """
        ...


def check_names(expected: Iterable[str], params: State, grads: State) -> None:
    """Raises ValueError unless `params` and `grads` have exactly the expected names."""
    known = set(expected)
    for kind, given in (("params", params), ("grads", grads)):
        if set(given) != known:
            raise ValueError(
                f"{kind} must have the names that init_spec was given; missing {sorted(known - set(given))}, "
                f"unknown {sorted(set(given) - known)}; call init_spec with the parameters of this network first")
