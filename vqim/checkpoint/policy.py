"""Policies for which checkpoints to keep. A checkpoint is kept if any policy keeps it."""
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Saved:
    """A committed checkpoint as policies see it.

    Attributes:
      step: the number of training steps done.
      metrics: the finite metrics saved with it, and the results of evaluations at this step.
      saved_at: when it was saved, in seconds since 1970; None in checkpoints of old versions.
    """

    step: int
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    saved_at: float | None = None


class Keep(Protocol):
    """A policy that says which of the committed checkpoints to keep."""

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
    """Keeps every checkpoint whose step is a multiple of `steps`, permanently."""

    steps: int

    def __post_init__(self) -> None:
        _check_positive("steps", self.steps)

    def kept(self, history: Sequence[Saved]) -> set[int]:
        return {saved.step for saved in history if saved.step % self.steps == 0}


@dataclasses.dataclass(frozen=True)
class KeepHourly:
    """Keeps a checkpoint of every span of `hours` hours, permanently: the first of each span."""

    hours: float

    def __post_init__(self) -> None:
        if not self.hours > 0:
            raise ValueError(f"hours must be greater than 0, got {self.hours!r}")

    def kept(self, history: Sequence[Saved]) -> set[int]:
        kept: set[int] = set()
        last = -math.inf
        for saved in history:
            if saved.saved_at is not None and saved.saved_at - last >= 3600 * self.hours:
                kept.add(saved.step)
                last = saved.saved_at
        return kept


@dataclasses.dataclass(frozen=True)
class KeepBest:
    """Keeps the `num` checkpoints with the best `metric`; of two equal ones, the newer counts as better.

    Checkpoints saved without the metric, or with one that is not finite, are not among the best.

    Attributes:
      metric: its name in the summaries, such as 'evaluation/psnr'.
      num: the number of checkpoints to keep.
      mode: 'max' if larger is better, 'min' if smaller is.
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
    """The steps that at least one policy keeps, and always the newest, which a restart needs.

    Without a policy all steps are kept.
    """
    policies = tuple(policies)
    history = sorted(history, key=lambda saved: saved.step)
    if not policies:
        return {saved.step for saved in history}
    return set().union({saved.step for saved in history[-1:]}, *(policy.kept(history) for policy in policies))


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
