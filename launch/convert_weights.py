"""Makes a run directory from the weights of another project's tokenizer.

    python -m launch.convert_weights --format=taming --weights=last.ckpt --gin_file=my_vqgan.gin --workdir=runs/vqgan
    python -m launch.convert_weights --format=dalle --weights=encoder.pkl --weights=decoder.pkl --gin_file=my_dvae.gin
        --workdir=runs/dvae

The gin file describes a training run of the same network. This verb writes the checkpoint before its first step, with
these weights. Then launch.evaluate can measure it, launch.cache_tokens and priors (frozen.FromRun) can use its tokens,
and launch.train can train it further. The user has to get the weights; third_party/taming_vqgan and
third_party/dalle_dvae say which files.
"""
import dataclasses
import functools
from collections.abc import Mapping
from types import ModuleType

import numpy as np
from absl import flags as absl_flags
from absl import logging

from vqim.checkpoint.manager import CheckpointManager
from vqim.contracts.runtime import Runtime
from vqim.nn.module import spec
from vqim.registry.config import ConfigError
from vqim.state import sections
from vqim.state.init import FromArray
from vqim.third_party import dalle_dvae, taming_vqgan
from vqim.tokenizer.objective import TokenizerObjective
from vqim.training.experiment import Experiment
from vqim.training.facts import write_facts
from vqim.training.state import save, start

from . import flags, session
from .torch_weights import convert, read_weights

PREFIXES = sections.params("tokenizer"), sections.ema("tokenizer")
"""The parameters, and their moving averages where the run keeps these."""
ADAPTERS: dict[str, ModuleType] = {"taming": taming_vqgan, "dalle": dalle_dvae}
FORMAT = absl_flags.DEFINE_enum("format", None, sorted(ADAPTERS), "Whose weights they are.", required=True)
WEIGHTS = absl_flags.DEFINE_multi_string(
    "weights", None, "A file of weights. For --format=dalle twice: the encoder's, then the decoder's.", required=True)


def main() -> None:
    """Reads the weights, fits them to the gin file's tokenizer, and writes step 0."""
    config = flags.load_config()
    runtime = session.make_runtime(config, flags.RUNTIME.value)
    experiment = session.experiment_with_data(config)
    objective = experiment.task.objective
    if not isinstance(objective, TokenizerObjective):
        raise ConfigError(f"the gin file must train a tokenizer, it trains a {objective.name}")
    adapter = ADAPTERS[FORMAT.value]
    if len(WEIGHTS.value) != len(adapter.FILES):
        raise ConfigError(f"--weights must be given {len(adapter.FILES)} times for --format={FORMAT.value}, "
                          f"got {len(WEIGHTS.value)}")
    weights = {prefix + name: array
               for prefix, path in zip(adapter.FILES, WEIGHTS.value, strict=True)
               for name, array in read_weights(path).items()}
    params = convert(weights, spec(objective.tokenizer), adapter)
    with session.claimed_workdir(config, flags.workdir(), runtime.hosts) as workdir:
        write(experiment, params, workdir, runtime, config.text())
    logging.info("%s has %d arrays of %s.", workdir, len(params), ", ".join(WEIGHTS.value))


def write(
    experiment: Experiment, params: Mapping[str, np.ndarray], workdir: str, runtime: Runtime, config: str,
) -> None:
    """Saves the state before the first step, with these tokenizer parameters.

    Raises:
      ConfigError: the run already has checkpoints.
    """
    manager = CheckpointManager(
        f"{workdir}/checkpoints", process_index=runtime.process_index, process_count=runtime.process_count,
        barrier=runtime.hosts.wait)
    if manager.steps():
        raise ConfigError(f"--workdir must have no checkpoints yet; {workdir} has steps {manager.steps()}")
    leaves = experiment.task.init_spec()
    for prefix in PREFIXES:
        leaves |= {
            name: dataclasses.replace(
                leaf, init=FromArray(functools.partial(params.__getitem__, name.removeprefix(prefix))))
            for name, leaf in leaves.items() if name.startswith(prefix)}
    if runtime.process_index == 0:
        write_facts(workdir, experiment.data)
    loader = experiment.data.training(
        experiment.batch_size // runtime.process_count, experiment.seed,
        process_index=runtime.process_index, process_count=runtime.process_count)
    try:
        save(start(leaves, experiment.seed, runtime), leaves, manager, runtime,
             data_position=loader.position(), config=config, metrics={})
        manager.wait()
    finally:
        loader.close()


def run() -> None:
    """Entry point of the console script."""
    flags.run(main)


if __name__ == "__main__":
    run()
