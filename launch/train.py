"""Trains what a gin file describes: a tokenizer, a prior, a probe or a classifier.

    python -m launch.train --gin_file=gin/exp/quickstart/tokenizer.gin --workdir=runs/tokenizer
    python -m launch.train ... --gin_bindings='train.num_steps = 100' --dry_run

The same command again continues from the newest checkpoint in the run directory.
"""
import re
import sys

from absl import flags as absl_flags
from absl import logging

from vqim.checkpoint.errors import NoCheckpointError
from vqim.checkpoint.files import is_url, open_files
from vqim.checkpoint.manager import CheckpointManager
from vqim.registry.config import ConfigError
from vqim.runtime.allocator import freed_memory_kept
from vqim.training.data_identity import DataChangedError
from vqim.training.loop import check_batch_size, train
from vqim.training.start_from import StartFromError, started_spec
from vqim.training.state import NonFiniteError

from . import flags, session
from .rehearsal import rehearse

DRY_RUN = flags.define_dry_run()
PROFILE_STEPS = absl_flags.DEFINE_string(
    "profile_steps", None, "Steps to trace for TensorBoard's profiler: 100:110 are the ten after step 100.")

END_IF_HANGING = absl_flags.DEFINE_bool(
    "end_if_hanging", False, "End the process, with code 70, when a step takes far longer than those before it.")


def main() -> None:
    """Builds everything; then trains or, with --dry_run, only describes what would be trained."""
    profile_steps = _steps(PROFILE_STEPS.value)
    if not flags.GIN_FILE.value:
        raise ConfigError("--gin_file must say what to train, such as gin/exp/quickstart/tokenizer.gin, or the "
                          "config.gin of a run that is to go on; got none")
    flags.restore()  # refused before any work
    if profile_steps and is_url(flags.workdir() or ""):
        raise ConfigError("--profile_steps needs a --workdir that is a folder, since profilers write none but files; "
                          f"got {flags.workdir()}")
    config = flags.load_config()
    runtime = session.make_runtime(config, flags.RUNTIME.value)
    experiment = session.experiment_without_data(config) if DRY_RUN.value else session.experiment_with_data(config)
    try:
        check_batch_size(experiment.batch_size, runtime, experiment.task.num_micro_batches)
    except ValueError as error:
        raise ConfigError(f"train.{error}") from error
    has_begun = _has_begun(flags.workdir())
    unusable = [] if has_begun else session.unusable_runs(experiment)
    try:
        if not has_begun:
            started_spec(experiment.task.init_spec(), experiment.start_from)
    except StartFromError as error:
        raise ConfigError(f"train.{error}") from error
    except NoCheckpointError as error:
        raise ConfigError(f"train.start_from: {error}") from error
    operative = config.operative()
    if DRY_RUN.value:
        print(operative)
        print(session.describe_experiment(experiment, runtime))
        for line in [*unusable, *session.describe_data(experiment, may_be_missing=True)]:
            print(line)
        return
    rehearse(config, experiment, runtime)
    if unusable:
        bound = (str(binding) for binding in config.bindings.values() if binding.name.startswith("frozen.FromRun.run"))
        raise ConfigError("\n  ".join([*unusable, *bound]))
    if not has_begun:
        try:
            experiment.check_tokens(None)
        except DataChangedError as error:
            raise ConfigError(f"train.data: {error}") from error
    with session.claimed_workdir(config, flags.workdir(), runtime.hosts) as workdir:
        if runtime.process_index == 0:
            open_files(workdir).write("operative_config.gin", operative.encode())
        for name, value in runtime.describe().items():
            logging.info("%s: %s", name, value)
        for line in session.describe_data(experiment):
            logging.info("%s", line)
        try:
            with freed_memory_kept():
                finished = train(
                    experiment, workdir=workdir, runtime=runtime, config=config.text(), shown_config=operative,
                    profile_steps=profile_steps, restore_step=flags.restore(), ends_if_it_hangs=END_IF_HANGING.value)
        except NonFiniteError as error:
            sys.exit(f"Stopped: {error}. To go on with other values, write them into {workdir}/config.gin too.")
        except DataChangedError as error:
            raise ConfigError(f"train.data: {error}") from error
    if finished.interrupted:
        sys.exit(f"Interrupted by {finished.interrupted}.")


def _has_begun(workdir: str | None) -> bool:
    """Whether a run directory has checkpoints; if so, the run continues from them, whatever it started from."""
    return workdir is not None and CheckpointManager(f"{workdir}/checkpoints").latest_step() is not None


def _steps(text: str | None) -> range | None:
    """The range that a text A:B gives."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ConfigError(f"--profile_steps must be A:B with A < B, such as 100:110 for the ten steps after step 100; "
                          f"got {text}")
    return range(int(found[1]), int(found[2]))


def run() -> None:
    """Entry point of the console script."""
    flags.run(main)


if __name__ == "__main__":
    run()
