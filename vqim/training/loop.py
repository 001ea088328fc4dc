"""The training loop, used for every task."""
import dataclasses
import os
import textwrap
from typing import Literal

from absl import logging

from vqim.checkpoint.errors import CheckpointError
from vqim.checkpoint.manager import CheckpointManager
from vqim.contracts.data import Loader
from vqim.contracts.runtime import Runtime
from vqim.state.leaf import Spec
from vqim.training.data_identity import check_same, moved
from vqim.training.experiment import Experiment
from vqim.training.facts import write_facts
from vqim.training.interrupts import Interrupts
from vqim.training.profiling import Profiler
from vqim.training.progress import Progress
from vqim.training.run import Run
from vqim.training.saver import Saver
from vqim.training.state import NonFiniteError, TrainState, restore, start
from vqim.training.summaries import Summaries, evaluators_done, measured
from vqim.training.watchdog import Watchdog

Restore = int | Literal["latest_valid"] | None
"""Which checkpoint a run goes on from: a step, the newest that is whole, or the newest."""


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
    shown_config: str | None = None, profile_steps: range | None = None, restore_step: Restore = None,
    ends_if_it_hangs: bool = False,
) -> Finished:
    """Trains up to `experiment.num_steps`, from the newest checkpoint in `workdir` if there is one.

    A run that was interrupted, by a signal or by the machine, and started again ends with the same bits as a run
    without interruption, on the same runtime, mesh and machine.

    The state is saved before whatever can fail, such as an evaluation, and when something has failed: only an error in
    the middle of an update, or in one of several processes, leaves the run with the checkpoint before.

    Args:
      experiment: what to train, on which data, and for how long.
      workdir: the run directory.
      runtime: where to run (`vqim.runtime`).
      config: the configuration as text, kept with every checkpoint.
      shown_config: what TensorBoard shows of it, such as the same with all defaults; `config` unless given.
      profile_steps: process 0 traces the steps after step `profile_steps.start`, up to step `profile_steps.stop`.
      restore_step: the checkpoint to go on from; newer ones are set aside.
      ends_if_it_hangs: see `Watchdog`.

    Raises:
      NonFiniteError: a learning rate, a loss or a gradient was not finite; the state before that step has been saved.
        Or an update made the state non-finite; that state has not been saved.
      CheckpointError: checkpoints could not be written several times; the last one before is complete.
      ValueError: the checkpoint belongs to another model, or the batch does not fit the devices.
      Exception: any other error of the data or an evaluator; the state has been saved.
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
    state, unmeasured = _begin(experiment, spec, runtime, manager, loader, restore_step)
    if manager.latest_step() is not None and state.step < num_steps:
        logging.info("Going on from step %d of %s.", state.step, workdir)
    done = evaluators_done(workdir, state.step) if unmeasured else set()
    progress = Progress(state.step, num_steps, batch_size, runtime.peak_flops)
    summaries = Summaries(workdir, state.step, enabled=runtime.process_index == 0)
    profiler = Profiler(runtime, workdir, profile_steps if runtime.process_index == 0 else None)
    watchdog = Watchdog(runtime.hosts, workdir, ends=ends_if_it_hangs)
    run = Run(experiment, spec, state, runtime, manager, loader, config, progress, watchdog)
    unmeasured = unmeasured and bool(run.evaluators_due().keys() - done)
    if state.step >= num_steps and not unmeasured:
        logging.info("Nothing to do: %s has step %d of %d. A larger train.num_steps would go on from there.",
                     workdir, state.step, num_steps)
    interrupted = None
    try:
        if runtime.process_index == 0:
            write_facts(workdir, experiment.data)
        if state.step < num_steps:
            # TensorBoard reads text as Markdown, which shows indented lines as they are.
            summaries.write(state.step, {"config": textwrap.indent(shown_config or config, "    ")})
        run.record(measured(workdir, state.step) if done else {})
        with watchdog, Interrupts(runtime.hosts) as interrupts:
            saver = Saver(manager, experiment.save_every, experiment.save_minutes,
                          interrupts.ask_to_save if runtime.process_index == 0 else None)
            if unmeasured:  # an interruption left evaluators out
                with progress.pause(), progress.spend("evaluating"):
                    interrupted, _ = run.evaluate_due(interrupts, summaries, done)
            while state.step < num_steps and not interrupted:
                with progress.pause():
                    profiler.at(state.step)
                # ---- One update.
                run.step()
                saver.watch()
                interrupted = interrupts.tick()
                is_last = state.step == num_steps
                # ---- Metrics, read back from the device.
                if state.step % experiment.log_every == 0 or is_last:
                    metrics = run.read_metrics()
                    summaries.write(state.step, {
                        **task.host_scalars(state.step - 1), **metrics, **progress.measure(state.step, run.step_flops),
                        **progress.shares(), **runtime.counters(), "data/num_skipped": loader.num_skipped})
                    logging.info("%s", progress.line(metrics))
                unmeasured = bool(run.evaluators_due())
                # ---- A checkpoint, before the evaluation, which may fail.
                is_asked = interrupts.saves_now()  # asked once, whatever else is due: the next step would save again
                if saver.is_due(state.step) or is_asked or is_last or interrupted or unmeasured:
                    with progress.pause(), progress.spend("saving"), watchdog.watching("save"):
                        saver.save(lambda unmeasured=unmeasured: run.save(unmeasured))  # type: ignore[misc]
                # ---- Evaluation; a signal to stop ends it early.
                if unmeasured and not interrupted:
                    with progress.pause(), progress.spend("evaluating"):
                        interrupted, unmeasured = run.evaluate_due(interrupts, summaries)
                if is_last and not unmeasured:
                    interrupted = None  # all work is done
            saver.finish(lambda: run.save(unmeasured), lambda: interrupts.requested is not None)
    except (NonFiniteError, CheckpointError):
        raise
    except Exception as error:
        run.save_on_the_way_out(error)
        raise
    finally:
        profiler.close()
        summaries.close()
        loader.close()
    if interrupted:
        logging.info("Stopped on %s at step %d of %d; the same command%s goes on from here.", interrupted, state.step,
                     num_steps, " without --restore" if isinstance(restore_step, int) else "")
    return Finished(state, interrupted)


def _begin(
    experiment: Experiment, spec: Spec, runtime: Runtime, manager: CheckpointManager, loader: Loader,
    restore_step: Restore,
) -> tuple[TrainState, bool]:
    """The state to begin with, new or from a checkpoint, and whether evaluators were due when it was saved."""
    if manager.latest_step() is None and restore_step in (None, "latest_valid"):
        experiment.check_tokens(None)
        return start(spec, experiment.seed, runtime, experiment.start_from), False
    if restore_step is not None:
        restore_step = _agreed_step(manager, runtime, restore_step)
    checkpoint = manager.open(restore_step)
    experiment.check_tokens(checkpoint.read)
    state = restore(spec, experiment.seed, runtime, checkpoint)
    # All processes save the same position, so that their number may change.
    position, now = checkpoint.data_position(0), experiment.data_identity
    if check_same(checkpoint.metadata.get("data"), now, experiment.accept_changed_data):
        position = moved(position, now["num_examples"]["train"])
    loader.restore(position)
    return state, checkpoint.metadata.get("unmeasured", False)


def _agreed_step(manager: CheckpointManager, runtime: Runtime, restore_step: Restore) -> int:
    """The step to go on from, chosen by process 0, which sets newer ones aside."""
    if runtime.process_index == 0:
        step = manager.open(restore_step).step
        manager.set_aside_after(step)
        runtime.hosts.post("restore", str(step))
    return int(runtime.hosts.get("restore"))


def check_batch_size(batch_size: int, runtime: Runtime, num_micro_batches: int) -> None:
    """Raises ValueError unless a batch can be split over devices and processes, and each share into micro-batches."""
    multiple = runtime.num_batch_shards * num_micro_batches
    if batch_size % multiple or batch_size % runtime.process_count:
        parts = f" times {num_micro_batches} micro-batches" if num_micro_batches > 1 else ""
        raise ValueError(
            f"batch_size must be a multiple of {multiple}, the devices that share a batch{parts}, and of "
            f"{runtime.process_count} processes; got {batch_size}")
