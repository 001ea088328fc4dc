"""Which checkpoints to keep: small objects, combined by or."""
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Saved:
    """A committed checkpoint as policies see it: its step and the finite metrics saved with it."""

    step: int
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Keep(Protocol):
    """Says which of the committed checkpoints it wants kept."""

    def kept(self, history: Sequence[Saved]) -> set[int]:
        """Steps to keep, out of `history`, which is sorted by step."""
        ...


@dataclasses.dataclass(frozen=True)
class KeepLatest:
    """Keeps the `num` newest checkpoints."""

    num: int

    def __post_init__(self) -> None:
        _check_positive("num", self.num)

    def kept(self, history: Sequence[Saved]) -> set[int]:
        return {saved.step for saved in history[-self.num:]}


@dataclasses.dataclass(frozen=True)
class KeepEvery:
    """Keeps every checkpoint whose step is a multiple of `steps`, for good."""

    steps: int

    def __post_init__(self) -> None:
        _check_positive("steps", self.steps)

    def kept(self, history: Sequence[Saved]) -> set[int]:
        return {saved.step for saved in history if saved.step % self.steps == 0}


@dataclasses.dataclass(frozen=True)
class KeepBest:
    """Keeps the `num` checkpoints with the best `metric`; the newer of two equals is the better.

    Checkpoints saved without the metric, or with one that is not finite, are not among the best.

    Attributes:
      metric: its name among the metrics given to `CheckpointManager.save`.
      num: how many to keep.
      mode: 'max' if more is better, 'min' if less is.
    """

    metric: str
    num: int
    mode: str

    def __post_init__(self) -> None:
        _check_positive("num", self.num)
        if not self.metric:
            raise ValueError("metric must be the name of a metric, got an empty string")
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {self.mode!r}")

    def kept(self, history: Sequence[Saved]) -> set[int]:
        sign = 1 if self.mode == "max" else -1
        measured = [saved for saved in history if self.metric in saved.metrics]
        measured.sort(key=lambda saved: (sign * saved.metrics[self.metric], saved.step))
        return {saved.step for saved in measured[-self.num:]}


def kept_steps(policies: Iterable[Keep], history: Sequence[Saved]) -> set[int]:
    """The steps that at least one policy keeps, and always the newest: a restart needs it.

    Without any policy everything is kept.
    """
    policies = tuple(policies)
    history = sorted(history, key=lambda saved: saved.step)
    if not policies:
        return {saved.step for saved in history}
    return set().union({saved.step for saved in history[-1:]}, *(policy.kept(history) for policy in policies))


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
