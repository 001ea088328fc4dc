"""A run in progress: its state, and what has to be kept between two readings of the metrics."""
import contextlib
import math
from collections.abc import Collection
from typing import Any

from absl import logging
from torch import Tensor

from vqim.checkpoint.errors import CheckpointError
from vqim.checkpoint.manager import CheckpointManager
from vqim.contracts.data import Loader
from vqim.contracts.evaluation import Evaluator
from vqim.contracts.placing import place
from vqim.contracts.runtime import Runtime
from vqim.runtime.meta import step_flops
from vqim.state.health import FIRST_BAD_STEP, IS_BAD
from vqim.state.leaf import Spec
from vqim.training.experiment import Experiment
from vqim.training.interrupts import Interrupts
from vqim.training.programs import Programs
from vqim.training.progress import Progress
from vqim.training.state import NonFiniteError, TrainState, save
from vqim.training.summaries import Summaries
from vqim.training.watchdog import ENDED, Watchdog

_END = object()


class Run:
    """A run in progress: its state, and its steps since the metrics were last read."""

    def __init__(
        self, experiment: Experiment, spec: Spec, state: TrainState, runtime: Runtime, manager: CheckpointManager,
        loader: Loader, config: str, progress: Progress, watchdog: Watchdog,
    ):
        self._experiment, self._task, self._spec = experiment, experiment.task, spec
        self._state, self._runtime = state, runtime
        self._manager, self._loader, self._config = manager, loader, config
        self._progress, self._watchdog = progress, watchdog
        self._programs = Programs(self._task, runtime)
        self._window: list[tuple[str, Tensor]] = []
        self._means: dict[str, float] = {}
        # Results of evaluators at this step only, so that `KeepBest` does not take them for a later step's.
        self._measured: dict[str, float] = {}
        # The data's position before each step that has not been found healthy yet.
        self._positions: dict[int, dict[str, Any]] = {}
        self._flops: dict[str, int] = {}
        self._identity = experiment.data_identity
        # While a step is being made: the versions of the arrays before it.
        self._versions: list[int] | None = None
        # Floating-point operations per step: the mean over the steps of the last reading.
        self.step_flops = 0.0

    def step(self) -> None:
        """Makes one update."""
        self._measured.clear()
        self._check_scalars()
        self._positions[self._state.step] = self._loader.position()
        with self._progress.spend("waiting_for_data"), self._watchdog.watching("batch of data"):
            batch = self._runtime.put(next(self._loader))
        program = self._task.objective.program(self._state.step)
        is_first = program not in self._flops
        if is_first:
            self._flops[program] = step_flops(self._task, self._spec, batch, program)
        self._versions = self._array_versions()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._watchdog.watching("step", compiles=is_first))
            if is_first:
                stack.enter_context(self._progress.spend("compiling"))
            self._window.append((program, self._programs(program, self._state, batch)))
        self._state.step += 1
        self._versions = None

    def read_metrics(self) -> dict[str, float]:
        """Means over the steps since the last reading; NonFiniteError if one of these steps was not finite."""
        with self._watchdog.watching("reading of metrics"):
            self._check_health()
        if self._window:
            self._means = self._programs.means(self._window)
            self.step_flops = sum(self._flops[program] for program, _ in self._window) / len(self._window)
            self._window.clear()
        return self._means

    def evaluators_due(self) -> dict[int, Evaluator]:
        """The evaluators to be run at this step, by their numbers."""
        step = self._state.step
        return {number: evaluator for number, evaluator in enumerate(self._experiment.evaluators)
                if step == self._experiment.num_steps or evaluator.every and step % evaluator.every == 0}

    def evaluate_due(
        self, interrupts: Interrupts, summaries: Summaries, done: Collection[int] = (),
    ) -> tuple[str | None, bool]:
        """Runs the evaluators that are due, except those whose numbers are in `done`.

        Their results are also added to this step's checkpoint, for `KeepBest`.

        Returns:
          The signal that came meanwhile, and whether it prevented some evaluators.
        """
        due = {number: evaluator for number, evaluator in self.evaluators_due().items() if number not in done}
        if due:
            self._check_health()
        for number, evaluator in due.items():
            evaluation = iter(running := evaluator.begin(
                self._task, self._experiment.data, self._state.arrays, self._runtime))
            while True:
                with self._watchdog.watching(f"batch of evaluator {number}"):
                    if next(evaluation, _END) is _END:
                        break
                if signal := interrupts.tick():
                    return signal, True
            results = running.result()
            numbers = {name: value for name, value in results.items() if isinstance(value, int | float)}
            twice = sorted(numbers.keys() & self._measured.keys())
            if twice:
                raise ValueError(f"evaluators: two measure {', '.join(twice[:5])}; give one of them a `section`")
            summaries.write(self._state.step, results, number)
            line = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            if line:  # a pass that only shows images has none
                logging.info("step %d  %s", self._state.step, line)
            self.record(numbers)
        return None, False

    def record(self, numbers: dict[str, float]) -> None:
        """Adds results of evaluators to this step's checkpoint; where that fails, `KeepBest` does not know them."""
        self._measured |= numbers
        if not numbers:
            return
        try:
            self._manager.record(self._state.step, numbers)
        except OSError as error:
            logging.warning("The results of step %d cannot be added to its checkpoint: %s", self._state.step, error)

    def save(self, unmeasured: bool = False) -> None:
        """Saves the state, unless a step since the last reading was not finite; see `state.save`."""
        self._check_health()
        self._save(self._loader.position(), unmeasured)

    def save_on_the_way_out(self, failure: Exception) -> None:
        """Saves what there is when something else has failed; says what could not be saved and never raises.

        One of several processes cannot save without the others, which it tells to end.
        """
        try:
            self._manager.wait()
        except CheckpointError as error:
            logging.error("%s", error)
        if self._runtime.process_count > 1:
            with contextlib.suppress(RuntimeError):  # process 0, which keeps the posts, has ended already
                self._runtime.hosts.post(ENDED, f"Process {self._runtime.process_index} has ended with "
                                                f"{type(failure).__name__}: {failure}")
        step, latest = self._state.step, self._manager.latest_step()
        if latest == step:
            return
        kept = f"the newest checkpoint is step {latest}" if latest is not None else "there is no checkpoint"
        if self._runtime.process_count > 1:
            # The others make steps that wait for this process: they come to no save.
            logging.error("Step %d is not saved, since only one of several processes knows of the error; %s.",
                          step, kept)
        elif self._versions is not None and self._versions != self._array_versions():
            logging.error("Step %d failed in the middle of its update, so the state is not saved; %s.", step, kept)
        else:
            # Known from before the step, if one was begun: data that have failed may have moved on.
            position = self._positions.get(step) or self._loader.position()
            try:
                self._check_health()
                self._save(position, bool(self.evaluators_due()), prune=False)
                self._manager.wait()
            except Exception as error:
                logging.error("Step %d could not be saved on the way out: %s", step, error)

    def _save(self, data_position: dict[str, Any], unmeasured: bool = False, prune: bool = True) -> None:
        save(self._state, self._spec, self._manager, self._runtime, data_position=data_position, config=self._config,
             metrics={**self._means, **self._measured}, unmeasured=unmeasured, prune=prune, data=self._identity)

    def _save_in_an_emergency(self, data_position: dict[str, Any]) -> str:
        """Saves without removing anything; returns the words for a message."""
        step = self._state.step
        try:
            self._save(data_position, bool(self.evaluators_due()), prune=False)
            self._manager.wait()
            saved = f"the state from before it is saved as step {step}"
        except CheckpointError as error:
            saved = f"the state from before it could not be saved ({error})"
        # The loss that was computed from the state of an earlier step was finite, or this were not the first.
        good = max((found for found in self._manager.steps() if found < step), default=None)
        return saved + (f". That state may be bad already; the newest checkpoint known to be good is step {good}, from "
                        f"which --restore={good} goes on" if good is not None else
                        ". No earlier checkpoint is known to be good")

    def _array_versions(self) -> list[int]:
        """Numbers that change when an array is written."""
        return [array._version for array in self._state.arrays.values()]

    def _check_scalars(self) -> None:
        """Checks rates: one that is not finite would ruin the parameters while loss and gradients are still finite."""
        scalars = self._task.host_scalars(self._state.step)
        bad = [f"{name} = {value}" for name, value in scalars.items() if not math.isfinite(value)]
        if bad:
            self._check_health()
            saved = self._save_in_an_emergency(self._loader.position())
            raise NonFiniteError(
                f"step {self._state.step} is given {', '.join(bad)}, which is not finite; it has not been made, and "
                f"{saved}. Look at the schedule")

    def _check_health(self) -> None:
        flags = [self._state.arrays[FIRST_BAD_STEP], self._state.arrays[IS_BAD]]
        first_bad, is_bad = self._runtime.fetch(flags)
        if first_bad < 0:
            self._positions.clear()
            return
        names = [name for name, bad in zip(self._task.checked, is_bad, strict=True) if bad]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        # Nothing has changed since the bad step, so this is the state before it, except for the flags.
        self._state.step = int(first_bad)
        flags_spec = {name: self._spec[name] for name in (FIRST_BAD_STEP, IS_BAD)}
        self._state.arrays |= place(flags_spec, self._state.seed, self._runtime)
        saved = self._save_in_an_emergency(self._positions[self._state.step])
        raise NonFiniteError(
            f"step {self._state.step} met values that are not finite, in {', '.join(names[:8])}{more}; it changed "
            f"nothing, and {saved}. Look at the loss before it; a lower learning rate or max_gradient_norm may help")
