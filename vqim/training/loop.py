"""The training loop, used for every task."""
import dataclasses
import functools
import math
import os
import textwrap
from collections.abc import Callable, Collection
from typing import Any

import torch
from absl import logging
from torch import Tensor

from vqim.checkpoint.manager import CheckpointManager
from vqim.contracts.data import Loader
from vqim.contracts.evaluation import Evaluator
from vqim.contracts.placing import place
from vqim.contracts.runtime import Runtime
from vqim.contracts.task import Task
from vqim.runtime.meta import step_flops
from vqim.state.health import FIRST_BAD_STEP, IS_BAD
from vqim.state.leaf import Spec, State
from vqim.training.experiment import Experiment
from vqim.training.facts import write_facts
from vqim.training.interrupts import Interrupts
from vqim.training.profiling import Profiler
from vqim.training.progress import Progress
from vqim.training.state import NonFiniteError, TrainState, restore, save, start
from vqim.training.summaries import Summaries, evaluators_done


@dataclasses.dataclass(frozen=True)
class Finished:
    """The result of `train`.

    Attributes:
      state: the last state.
      interrupted: the signal that ended the run early; None if the run reached its end.
    """

    state: TrainState
    interrupted: str | None


def train(
    experiment: Experiment, *, workdir: str | os.PathLike[str], runtime: Runtime, config: str,
    profile_steps: range | None = None,
) -> Finished:
    """Trains up to `experiment.num_steps`, from the newest checkpoint in `workdir` if there is one.

    A run that was interrupted, by a signal or by the machine, and started again ends with the same bits as a run
    without interruption, on the same runtime, mesh and machine.

    Args:
      experiment: what to train, on which data, and for how long.
      workdir: the run directory.
      runtime: where to run (`vqim.runtime`).
      config: the configuration as text, kept with every checkpoint and shown by TensorBoard.
      profile_steps: process 0 traces the steps after step `profile_steps.start`, up to step `profile_steps.stop`.

    Raises:
      NonFiniteError: a learning rate, a loss or a gradient was not finite; the state before that step has been saved.
        Or an update made the state non-finite; that state has not been saved.
      CheckpointError: a checkpoint could not be written; the one before is complete.
      ValueError: the checkpoint belongs to another model, or the batch does not fit the devices.
    """
    task, num_steps, batch_size = experiment.task, experiment.num_steps, experiment.batch_size
    check_batch_size(batch_size, runtime, task.num_micro_batches)
    spec = task.init_spec()
    loader = experiment.data.training(
        batch_size // runtime.process_count, experiment.seed,
        process_index=runtime.process_index, process_count=runtime.process_count)
    manager = CheckpointManager(
        f"{workdir}/checkpoints", keep=experiment.keep, process_index=runtime.process_index,
        process_count=runtime.process_count, barrier=runtime.hosts.wait)
    latest = manager.latest_step()
    if latest is None:
        state, unmeasured = start(spec, experiment.seed, runtime, experiment.start_from), False
    else:
        checkpoint = manager.open(latest)
        state = restore(spec, experiment.seed, runtime, checkpoint)
        # All processes save the same position, so that their number may change.
        loader.restore(checkpoint.data_position(0))
        unmeasured = checkpoint.metadata.get("unmeasured", False)
        if state.step < num_steps:
            logging.info("Going on from step %d of %s.", state.step, workdir)
        elif not unmeasured:
            logging.info("Nothing to do: %s has step %d of %d. A larger train.num_steps would go on from there.",
                         workdir, state.step, num_steps)
    run = _Run(experiment, spec, state, runtime, manager, loader, config)
    progress = Progress(state.step, num_steps, batch_size, runtime.peak_flops)
    summaries = Summaries(workdir, state.step, enabled=runtime.process_index == 0)
    profiler = Profiler(runtime, workdir, profile_steps if runtime.process_index == 0 else None)
    interrupted = None
    try:
        if runtime.process_index == 0:
            write_facts(workdir, experiment.data)
        if state.step < num_steps:
            # TensorBoard reads text as Markdown, which shows indented lines as they are.
            summaries.write(state.step, {"config": textwrap.indent(config, "    ")})
        with Interrupts(runtime.hosts) as interrupts:
            if unmeasured:  # an interruption left evaluators out
                done = evaluators_done(workdir, state.step)
                interrupted, _ = run.evaluate_due(interrupts, summaries, done)
            while state.step < num_steps and not interrupted:
                with progress.pause():
                    profiler.at(state.step)
                # ---- One update.
                run.step()
                interrupted = interrupts.tick()
                is_last = state.step == num_steps
                # ---- Metrics, read back from the device.
                if state.step % experiment.log_every == 0 or is_last:
                    metrics = run.read_metrics()
                    summaries.write(state.step, {
                        **task.host_scalars(state.step - 1), **metrics, **progress.measure(state.step, run.step_flops),
                        **runtime.counters(), "data/num_skipped": loader.num_skipped})
                    logging.info("%s", progress.line(metrics))
                with progress.pause():
                    # ---- Evaluation; a signal to stop ends it early.
                    unmeasured = bool(run.evaluators_due())
                    if not interrupted:
                        interrupted, unmeasured = run.evaluate_due(interrupts, summaries)
                    if is_last and not unmeasured:
                        interrupted = None  # all work is done
                    # ---- A checkpoint.
                    if state.step % experiment.save_every == 0 or is_last or interrupted:
                        run.save(unmeasured)
        manager.wait()
    finally:
        profiler.close()
        summaries.close()
        loader.close()
    if interrupted:
        logging.info("Stopped on %s at step %d of %d; the same command goes on from here.",
                     interrupted, state.step, num_steps)
    return Finished(state, interrupted)


def check_batch_size(batch_size: int, runtime: Runtime, num_micro_batches: int) -> None:
    """Raises ValueError unless a batch can be split over devices and processes, and each share into micro-batches."""
    multiple = runtime.num_batch_shards * num_micro_batches
    if batch_size % multiple or batch_size % runtime.process_count:
        parts = f" times {num_micro_batches} micro-batches" if num_micro_batches > 1 else ""
        raise ValueError(
            f"batch_size must be a multiple of {multiple}, the devices that share a batch{parts}, and of "
            f"{runtime.process_count} processes; got {batch_size}")


class _Run:
    """A run in progress: its state, and its steps since the metrics were last read."""

    def __init__(
        self, experiment: Experiment, spec: Spec, state: TrainState, runtime: Runtime, manager: CheckpointManager,
        loader: Loader, config: str,
    ):
        self._experiment, self._task, self._spec = experiment, experiment.task, spec
        self._state, self._runtime = state, runtime
        self._manager, self._loader, self._config = manager, loader, config
        self._programs = Programs(self._task, runtime)
        self._window: list[tuple[str, Tensor]] = []
        self._means: dict[str, float] = {}
        # Results of evaluators at this step only, so that `KeepBest` does not take them for a later step's.
        self._measured: dict[str, float] = {}
        # The data's position before each step that has not been found healthy yet.
        self._positions: dict[int, dict[str, Any]] = {}
        self._flops: dict[str, int] = {}
        # Floating-point operations per step: the mean over the steps of the last reading.
        self.step_flops = 0.0

    def step(self) -> None:
        """Makes one update."""
        self._measured.clear()
        self._check_scalars()
        self._positions[self._state.step] = self._loader.position()
        batch = self._runtime.put(next(self._loader))
        program = self._task.objective.program(self._state.step)
        if program not in self._flops:
            self._flops[program] = step_flops(self._task, self._spec, batch, program)
        self._window.append((program, self._programs(program, self._state, batch)))
        self._state.step += 1

    def read_metrics(self) -> dict[str, float]:
        """Means over the steps since the last reading; NonFiniteError if one of these steps was not finite."""
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

        Their results are also stored in this step's checkpoint, for `KeepBest`.

        Returns:
          The signal that came meanwhile, and whether it prevented some evaluators.
        """
        due = {number: evaluator for number, evaluator in self.evaluators_due().items() if number not in done}
        if due:
            self._check_health()
        for number, evaluator in due.items():
            evaluation = evaluator.begin(
                self._task, self._experiment.data, self._state.arrays, self._runtime)
            for _ in evaluation:
                if signal := interrupts.tick():
                    return signal, True
            results = evaluation.result()
            numbers = {name: value for name, value in results.items() if isinstance(value, int | float)}
            twice = sorted(numbers.keys() & self._measured.keys())
            if twice:
                raise ValueError(f"evaluators: two measure {', '.join(twice[:5])}; give one of them a `section`")
            self._measured |= numbers
            summaries.write(self._state.step, results, number)
            line = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            logging.info("step %d  %s", self._state.step, line)
        return None, False

    def save(self, unmeasured: bool = False) -> None:
        """Saves the state, unless a step since the last reading was not finite; see `state.save`."""
        self._check_health()
        self._save(self._loader.position(), unmeasured)

    def _save(self, data_position: dict[str, Any], unmeasured: bool = False) -> None:
        save(self._state, self._spec, self._manager, self._runtime, data_position=data_position, config=self._config,
             metrics={**self._means, **self._measured}, unmeasured=unmeasured)

    def _check_scalars(self) -> None:
        """Checks rates: one that is not finite would ruin the parameters while loss and gradients are still finite."""
        scalars = self._task.host_scalars(self._state.step)
        bad = [f"{name} = {value}" for name, value in scalars.items() if not math.isfinite(value)]
        if bad:
            self.save()
            self._manager.wait()
            raise NonFiniteError(
                f"step {self._state.step} is given {', '.join(bad)}, which is not finite; it has not been made, and "
                "the state from before it is saved. Look at the schedule")

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
        self._save(self._positions[self._state.step])
        self._manager.wait()
        raise NonFiniteError(
            f"step {self._state.step} met values that are not finite, in {', '.join(names[:8])}{more}; it changed "
            "nothing, and the state from before it is saved. Look at the loss before it; a lower learning rate or "
            "max_gradient_norm may help")


class Programs:
    """A task's steps, compiled to one program per name. Metrics come back as one vector, so reading is one transfer."""

    def __init__(self, task: Task, runtime: Runtime):
        self._task, self._runtime = task, runtime
        self._compiled: dict[str, Callable[..., Tensor]] = {}
        self._names: dict[str, list[str]] = {}

    def __call__(self, program: str, state: TrainState, batch: dict[str, Tensor]) -> Tensor:
        """Updates the state's arrays once; returns the metrics, on the device."""
        if program not in self._compiled:
            self._compiled[program] = self._runtime.compile(functools.partial(self._step, program))
        scalars = self._runtime.scalars(
            {**self._task.host_scalars(state.step), "step": state.step, "seed": state.seed})
        return self._compiled[program](state.arrays, batch, scalars)

    def means(self, window: list[tuple[str, Tensor]]) -> dict[str, float]:
        """The mean of each metric over the steps in which it was computed."""
        values: dict[str, list[float]] = {}
        rows = self._runtime.fetch([metrics for _, metrics in window])
        for (program, _), row in zip(window, rows, strict=True):
            for name, value in zip(self._names[program], row.tolist(), strict=True):
                values.setdefault(name, []).append(value)
        return {name: sum(of_steps) / len(of_steps) for name, of_steps in values.items()}

    def _step(
        self, program: str, arrays: State, batch: dict[str, Tensor], scalars: dict[str, Tensor],
    ) -> Tensor:
        metrics = self._task.train_step(arrays, batch, scalars, self._runtime.kernels, program)
        self._names[program] = list(metrics)
        return torch.stack([value.float().reshape(()) for value in metrics.values()])
