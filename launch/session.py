"""Code that the launch verbs share: opening runs and experiments, and run directories that belong to one experiment."""
import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import vqim.registry.components  # noqa: F401  gin knows the components from here on
from vqim.checkpoint import lock
from vqim.checkpoint.errors import NoCheckpointError
from vqim.checkpoint.files import is_url, open_files
from vqim.checkpoint.lease import Lease
from vqim.checkpoint.manager import CheckpointManager
from vqim.contracts.runtime import Hosts, Runtime
from vqim.frozen.from_run import FromRun
from vqim.registry.config import Config, ConfigError
from vqim.registry.run_config import read_config
from vqim.registry.runtimes import make_runtime
from vqim.registry.stamp import stamped
from vqim.runtime.arrays import to_tensor
from vqim.runtime.meta import step_flops
from vqim.trained import Trained
from vqim.trained import open_run as trained_run
from vqim.training.experiment import Experiment

from . import flags

RUNTIME_BINDINGS = (r"runtime\.",)
"""Names that may stay unused: a file may set both runtimes, but a run uses one."""

READING_BINDINGS = (*RUNTIME_BINDINGS, r"data\.")
"""Names that may also stay unused in a verb that reads a run, since its data may not be available."""

MAY_CHANGE = (
    r"vqim\.train\.(num_steps|log_every|save_every|save_minutes|keep|evaluators|accept_changed_data)$",
    r"evaluation\.", r"checkpoint\.", r"runtime\.",
    r"prior\.PriorObjective\.sampler$", r"prior\.(StepwiseSampler|MaskedSampler|GuidanceSchedule)\.",
    r"data\.Images\.(num_threads|max_corrupt_fraction)$",
)
"""Bindings whose values may change when a run is resumed: none of them changes what an update computes."""


OF_A_RUN = ("config.gin", "config.tmp", "operative_config.gin", "run.json", "run.tmp", "metrics.jsonl", "metrics.tmp",
            "checkpoints", "evaluation", "evaluation.json", "evaluation.npz", "evaluation.html", "evaluation.tmp",
            "evaluation_in_progress", "samples", "plugins", lock.FILE)
"""What a run writes into its directory, besides TensorBoard's events, traces and the stacks of hanging processes."""


@contextlib.contextmanager
def claimed_workdir(config: Config, workdir: str | None, hosts: Hosts) -> Iterator[str]:
    """Claims a run directory for this experiment, or checks that it already belongs to it; and locks it.

    Process 0 checks it, locks it and writes config.gin; the other processes get the result. Yields the directory.

    Raises:
      ConfigError: --workdir is missing, or it holds another experiment or other files (nothing has then been changed),
        or another process trains in it, or another host does not see it.
    """
    if not workdir:
        raise ConfigError("--workdir must name the run's directory, such as --workdir=runs/first; got none")
    with contextlib.ExitStack() as stack:
        if hosts.process_index == 0:
            try:
                _check_workdir(config, workdir)
                stack.enter_context(held(workdir))
                _check_workdir(config, workdir)  # another process may have had it in between
                open_files(workdir).write("config.gin", stamped(config.text()).encode())
                hosts.post("workdir", "")
            except (ConfigError, lock.LockedError, OSError) as error:
                hosts.post("workdir", str(error) if isinstance(error, ConfigError) else f"--workdir: {error}")
        refusal = hosts.get("workdir")
        hosts.wait("workdir")  # process 0, which keeps the posts, may end now
        if refusal:
            raise ConfigError(refusal)
        if open_files(workdir).read("config.gin") is None:
            raise ConfigError(f"--workdir must be a folder that all hosts share; {workdir} has no config.gin for host "
                              f"{hosts.process_index}, though host 0 wrote it")
        yield workdir


def held(workdir: str) -> lock.Lock | Lease:
    """The lock of a run directory, to be taken; the directory exists then."""
    if is_url(workdir):
        return Lease(workdir)
    Path(workdir).mkdir(parents=True, exist_ok=True)
    return lock.Lock(workdir)


def _check_workdir(config: Config, workdir: str) -> None:
    """Raises ConfigError unless a directory is new, or holds this experiment or one that has no checkpoint yet."""
    if not is_url(workdir) and Path(workdir).exists() and not Path(workdir).is_dir():
        raise ConfigError(f"--workdir must be a directory; {workdir} is a file")
    files = open_files(workdir)
    if CheckpointManager(f"{workdir}/checkpoints").latest_step() is not None:
        there = files.read("config.gin")
        if there is None:
            raise ConfigError(f"--workdir: {workdir} has checkpoints but no config.gin. Put the config.gin of one of "
                              "them there, or name another directory")
        config.refuse_other_experiment(there.decode(), workdir, MAY_CHANGE)
        return
    others = [name for name in files.children()
              if not {name, name.removesuffix(".tmp")} & {*OF_A_RUN}
              and not name.startswith(("events.out.", "stacks_")) and not name.endswith(".pt.trace.json")]
    if others:
        raise ConfigError(f"--workdir must be new or hold a run; {workdir} has no checkpoint but holds "
                          f"{', '.join(others[:5])}. Name another directory")


def describe_experiment(experiment: Experiment, runtime: Runtime) -> str:
    """Parameters, state, operations and device of an experiment, for a dry run."""
    spec = experiment.task.init_spec()
    batch = {name: to_tensor(array[:1]).expand(experiment.batch_size, *array.shape[1:])
             for name, array in experiment.data.batch_like(experiment.batch_size).items()}
    programs = Counter(map(experiment.task.objective.program, range(experiment.num_steps)))
    flops = {program: step_flops(experiment.task, spec, batch, program) for program in programs}
    mean_flops = sum(flops[program] * count for program, count in programs.items()) / experiment.num_steps
    saved_bytes = sum(leaf.num_bytes for leaf in spec.values() if leaf.saved)
    lines = [f"{part}: {count:,} parameters" for part, count in experiment.task.describe().items()]
    lines += [
        f"state: {len(spec)} arrays, {sum(leaf.num_bytes for leaf in spec.values()) / 2**20:,.1f} MiB; "
        f"{saved_bytes / 2**20:,.1f} MiB in a checkpoint",
        f"batch: {', '.join(f'{name} {tensor.dtype} {list(tensor.shape)}' for name, tensor in batch.items())}",
        f"step: {mean_flops:.4g} floating-point operations in matrix products and convolutions",
        *(f"program {program}: {count:,} of {experiment.num_steps:,} steps, {flops[program]:.4g} operations each"
          for program, count in programs.items() if len(programs) > 1),
        "runtime: " + ", ".join(f"{name} {value}" for name, value in runtime.describe().items()),
    ]
    return "\n".join(lines)


def unusable_runs(experiment: Experiment) -> list[str]:
    """Which runs that this one takes its frozen networks from cannot give them, a line or more for each."""
    found = []
    for name, network in experiment.task.objective.frozen.items():
        if not isinstance(network, FromRun):
            continue
        try:
            network.check()
        except NoCheckpointError:
            found.append(f"{name}: run must be the directory of a run with a checkpoint, and {network.run} has none: "
                         "train it first, or name another")
        except ValueError as error:
            found.append(f"{name}: run must have trained what is described here, and {network.run} has not: {error}")
    return found


def describe_data(experiment: Experiment, may_be_missing: bool = False) -> list[str]:
    """What there is of the data, and what of the files is no part of them, a line for each.

    Args:
      experiment: the experiment.
      may_be_missing: whether data that cannot be opened, or that do not fit, are a line too, and no error.
    """
    describe = getattr(experiment.data, "describe", None)
    if describe is None:
        return []
    try:
        lines: list[str] = describe()
    except (OSError, ValueError) as error:
        if not may_be_missing:
            raise
        said = flags.sentence(error).partition("\n  In call to configurable")[0]  # which gin adds
        return [f"data: not opened here: {said}"]
    try:
        if may_be_missing:
            experiment.task.objective.check_data(experiment.data)
    except (OSError, ValueError) as error:
        lines = [*lines, f"data: they do not fit: {flags.sentence(error)}"]
    return lines


def experiment_with_data(config: Config) -> Experiment:
    """The experiment that the configuration describes, with its data found and checked."""
    experiment: Experiment = config.call("train")
    config.refuse_unused(except_for=RUNTIME_BINDINGS)
    return experiment


def experiment_without_data(config: Config) -> Experiment:
    """The experiment that the configuration describes, for a verb that does not need its data."""
    experiment: Experiment = config.call("train", needs_data=False)
    config.refuse_unused(except_for=READING_BINDINGS)
    return experiment


def open_run(needs_data: bool = False, batch_size: int = 64) -> tuple[Config, Trained]:
    """The run that --workdir names; --gin_file and --gin_bindings override its configuration.

    Args:
      needs_data: whether its data have to be available.
      batch_size: the number of images to process at a time.

    Raises:
      ConfigError: there is no run, or it has no checkpoint yet.
    """
    workdir = run_directory()
    config = read_config(workdir, flags.gin_files(), flags.GIN_BINDINGS.value, flags.GIN_SEARCH_PATH.value)
    return config, trained_run(
        config, workdir, make_runtime(config, flags.RUNTIME.value), needs_data=needs_data, step=flags.restore(),
        batch_size=batch_size)


def run_directory() -> str:
    """The directory in --workdir, for the verbs that read a run; ConfigError if there is no run."""
    workdir = flags.workdir()
    if not workdir or open_files(workdir).read("config.gin") is None:
        raise ConfigError(f"--workdir must be the directory of a run, with config.gin in it; got {workdir or 'none'}")
    return workdir


def short_names(paths: Sequence[str]) -> list[str]:
    """The last two parts of each path, or as many as it takes to tell the paths apart."""
    parts = [Path(path).parts for path in paths]
    count = 2
    while len({part[-count:] for part in parts}) < len(set(parts)):
        count += 1
    return ["/".join(part[-count:]) for part in parts]
