"""Learning rates: functions of the step, computed on the host in double precision.

Steps count from 0; a step is the number of the update about to be made. The value enters a compiled step as a
tensor, so that a new learning rate needs no new program.
"""
import dataclasses
import math

from vqim.optim.arguments import require, require_step_count


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same learning rate throughout, after an optional linear warm-up.

    Attributes:
      peak: the learning rate.
      warmup_steps: the number of updates that ramp up to it; the last of them has the full rate. Zero for none.
    """

    peak: float
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        require(self.peak >= 0, "peak", "non-negative", self.peak)
        require_step_count("warmup_steps", self.warmup_steps, 0)

    def __call__(self, step: int) -> float:
        return self.peak * _warmup(step, self.warmup_steps)


@dataclasses.dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then half a cosine down to `final` (ViT-VQGAN section 5.1).

    The paper's stage 1: `WarmupCosine(1e-4, 5e-5, warmup_steps=50_000, total_steps=500_000)`.

    Attributes:
      peak: the highest learning rate, reached by the last warm-up step.
      final: the learning rate at `total_steps` and after.
      warmup_steps: the number of updates that ramp up linearly.
      total_steps: where the cosine ends, counted from the start of training.
    """

    peak: float
    final: float
    warmup_steps: int
    total_steps: int

    def __post_init__(self) -> None:
        require(self.peak > 0, "peak", "positive", self.peak)
        require(0 <= self.final <= self.peak, "final", f"from 0 to peak = {self.peak}", self.final)
        require_step_count("warmup_steps", self.warmup_steps, 0)
        _require_total_steps(self.total_steps, "warmup_steps", self.warmup_steps)

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.peak * _warmup(step, self.warmup_steps)
        fraction = _fraction(step, self.warmup_steps, self.total_steps)
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * fraction))


@dataclasses.dataclass(frozen=True)
class WarmupExponential:
    """Linear warm-up, a plateau, then exponential decay down to `final` (ViT-VQGAN section 5.2).

    The paper's stage 2:
    `WarmupExponential(4.5e-4, 1e-5, warmup_steps=5_000, decay_start=80_000, total_steps=450_000)`.

    Attributes:
      peak: the learning rate of the plateau.
      final: the learning rate at `total_steps` and after.
      warmup_steps: the number of updates that ramp up linearly.
      decay_start: the step at which the decay begins.
      total_steps: where the decay ends, counted from the start of training.
    """

    peak: float
    final: float
    warmup_steps: int
    decay_start: int
    total_steps: int

    def __post_init__(self) -> None:
        require(self.peak > 0, "peak", "positive", self.peak)
        require(0 < self.final <= self.peak, "final", f"above 0 and at most peak = {self.peak}", self.final)
        require_step_count("warmup_steps", self.warmup_steps, 0)
        require_step_count("decay_start", self.decay_start, self.warmup_steps)
        _require_total_steps(self.total_steps, "decay_start", self.decay_start)

    def __call__(self, step: int) -> float:
        fraction = _fraction(step, self.decay_start, self.total_steps)
        return self.peak * _warmup(step, self.warmup_steps) * (self.final / self.peak) ** fraction


@dataclasses.dataclass(frozen=True)
class WarmupLinear:
    """Linear warm-up, a plateau, then a straight line down to `final` (SeQ-GAN's Table 10, masked priors).

    That paper's, on ImageNet: `WarmupLinear(1e-4, 0.0, warmup_steps=0, decay_start=50_000, total_steps=1_500_000)`.

    Attributes:
      peak: the learning rate of the plateau.
      final: the learning rate at `total_steps` and after.
      warmup_steps: the number of updates that ramp up linearly; 0 for none.
      decay_start: the step at which the decay begins.
      total_steps: where the decay ends, counted from the start of training.
    """

    peak: float
    final: float
    warmup_steps: int
    decay_start: int
    total_steps: int

    def __post_init__(self) -> None:
        require(self.peak > 0, "peak", "positive", self.peak)
        require(0 <= self.final <= self.peak, "final", f"from 0 to peak = {self.peak}", self.final)
        require_step_count("warmup_steps", self.warmup_steps, 0)
        require_step_count("decay_start", self.decay_start, self.warmup_steps)
        _require_total_steps(self.total_steps, "decay_start", self.decay_start)

    def __call__(self, step: int) -> float:
        fraction = _fraction(step, self.decay_start, self.total_steps)
        return _warmup(step, self.warmup_steps) * (self.peak + (self.final - self.peak) * fraction)


def _require_total_steps(total_steps: int, before: str, last: int) -> None:
    """ValueError unless a decay has a step; gin files bind total_steps to the macro that people change."""
    require(type(total_steps) is int and total_steps > last, "total_steps",
            f"more than {before} = {last} (gin files bind it to %NUM_STEPS)", total_steps)


def _warmup(step: int, warmup_steps: int) -> float:
    """Ramps from 1 / warmup_steps at step 0 to 1, so that no update has a rate of zero."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def _fraction(step: int, begin: int, end: int) -> float:
    return min(1.0, max(0.0, (step - begin) / (end - begin)))
