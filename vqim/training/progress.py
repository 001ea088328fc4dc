"""How fast a run is, and how long it will take."""
import contextlib
import time
from collections.abc import Iterator

KINDS = ("compiling", "waiting_for_data", "evaluating", "saving")
"""What a run does besides steps. The first step of each program counts as compiling."""


class Progress:
    """Measures the steps between two readings, without pauses such as evaluations.

    Args:
      first_step: the step at which this process starts.
      num_steps: the number of steps in the whole run.
      batch_size: the number of images in a step.
      peak_flops: floating-point operations per second of all devices together; None where it is not known.
    """

    def __init__(self, first_step: int, num_steps: int, batch_size: int, peak_flops: float | None):
        self._num_steps, self._batch_size, self._peak_flops = num_steps, batch_size, peak_flops
        self._step, self._time = first_step, time.perf_counter()
        self._step_seconds = 0.0
        self._begin = self._time
        self._spent = dict.fromkeys(KINDS, 0.0)

    @contextlib.contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """A context whose time is counted as one of `KINDS`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._spent[kind] += time.perf_counter() - begin

    def shares(self) -> dict[str, float]:
        """For what the time since the beginning was used, by names in the summaries; the shares add up to 1."""
        total = max(time.perf_counter() - self._begin, 1e-9)
        shares = {f"goodput/{kind}": seconds / total for kind, seconds in self._spent.items()}
        return {"goodput/steps": 1.0 - sum(shares.values()), **shares}

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """A context whose time is not counted."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._time += time.perf_counter() - begin

    def measure(self, step: int, step_flops: float) -> dict[str, float]:
        """Speeds since the last reading, by their names in the summaries; see `runtime.meta.step_flops`."""
        now = time.perf_counter()
        self._step_seconds = (now - self._time) / max(step - self._step, 1)
        self._step, self._time = step, now
        flops = step_flops / self._step_seconds
        speeds = {
            "speed/step_seconds": self._step_seconds,
            "speed/images_per_second": self._batch_size / self._step_seconds,
            "speed/model_tflops_per_second": flops / 1e12,
        }
        if self._peak_flops is not None:
            speeds["speed/model_flops_utilization"] = flops / self._peak_flops
        return speeds

    def line(self, metrics: dict[str, float]) -> str:
        """One line for the console: step, loss, rate and time left."""
        left = self._step_seconds * (self._num_steps - self._step)
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return (f"step {self._step}/{self._num_steps}  loss {metrics['loss']:.4f}  "
                f"{self._batch_size / self._step_seconds:.1f} images/s  {1 / self._step_seconds:.2f} steps/s  "
                f"{hours}:{minutes:02}:{seconds:02} left")
