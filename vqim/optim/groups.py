"""Parameter groups: which parameters have weight decay, and by which factor each learning rate is scaled."""
import dataclasses
import re
from collections.abc import Iterable, Sequence

from vqim.optim.arguments import require
from vqim.state.leaf import Leaf, Spec


@dataclasses.dataclass(frozen=True)
class Group:
    """The parameters whose whole name matches one pattern, and how they are treated.

    Attributes:
      pattern: a regular expression for the whole name (`re.fullmatch`).
      learning_rate_multiplier: scales the learning rate, and with it the decay.
      weight_decay: weight decay for every parameter in the group. None gives matrices and tables the optimizer's own
        weight decay, and vectors (biases, gains) and scalars none.
    """

    pattern: str = ".*"
    learning_rate_multiplier: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern must be a regular expression, got {self.pattern!r}: {error}") from error
        require(self.learning_rate_multiplier >= 0, "learning_rate_multiplier", "non-negative",
                self.learning_rate_multiplier)
        require(self.weight_decay is None or self.weight_decay >= 0, "weight_decay", "None or non-negative",
                self.weight_decay)


@dataclasses.dataclass(frozen=True)
class Treatment:
    """A group's settings for one parameter."""

    learning_rate_multiplier: float
    weight_decay: float


def assign(
    params: Spec, groups: Sequence[Group], weight_decay: float, untrained: Iterable[str] = (),
) -> dict[str, Treatment]:
    """Gives each parameter the treatment of the one group that matches it.

    Args:
      params: the parameters.
      groups: they must cover every parameter exactly once.
      weight_decay: weight decay for matrices and tables in groups that do not set their own.
      untrained: names of parameters that are not trained; a group may match only such names.

    Raises:
      ValueError: a parameter is in no group or in several, or a group has no parameter.
    """
    treatments = {}
    frozen = list(untrained)
    unused = {group.pattern for group in groups if not any(re.fullmatch(group.pattern, name) for name in frozen)}
    for name, leaf in params.items():
        matching = [group for group in groups if re.fullmatch(group.pattern, name)]
        if len(matching) != 1:
            raise ValueError(
                f"parameter {name!r} must match exactly one group's pattern, it matches "
                f"{[g.pattern for g in matching]} of {[g.pattern for g in groups]}; make the patterns a partition")
        group = matching[0]
        unused.discard(group.pattern)
        default = weight_decay if is_decayed(leaf) else 0.0
        treatments[name] = Treatment(
            group.learning_rate_multiplier, default if group.weight_decay is None else group.weight_decay)
    if unused and params:
        raise ValueError(f"every group must hold a parameter, these patterns match none: {sorted(unused)}; "
                         f"the parameters are {sorted(params)}")
    return treatments


def is_decayed(leaf: Leaf) -> bool:
    """Whether weight decay applies: to matrices, kernels and tables, not to vectors or scalars (stacked or not)."""
    return len(leaf.shape) - (leaf.num_layers is not None) >= 2
