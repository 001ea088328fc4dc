"""Writes the tokens of a data set, so that a prior trains without running the tokenizer.

    python -m launch.cache_tokens --workdir=runs/tokenizer --num_views=10 --out=caches/emoji

Each view is the whole training split once more, augmented anew. Train on it with data.Tokens.path = 'caches/emoji'
and train.data = @data.Tokens().
"""
from pathlib import Path

import torch
from absl import flags as absl_flags
from absl import logging

from vqim.data.source import SPLITS
from vqim.data.token_cache import TokenCacheWriter
from vqim.nn.context import Context
from vqim.nn.module import apply
from vqim.registry.config import ConfigError
from vqim.state.leaf import State, select
from vqim.tokenizer.model import images_to_float
from vqim.tokenizer.pretrained import Pretrained
from vqim.tokenizer.task import TokenizerTask
from vqim.training.state import restore_arrays

from . import flags, session

OUT = absl_flags.DEFINE_string("out", None, "Folder for the cache.", required=True)
NUM_VIEWS = absl_flags.DEFINE_integer("num_views", 1, "Augmented passes over the training split.", lower_bound=1)
BATCH_SIZE = absl_flags.DEFINE_integer("batch_size", 256, "Pictures at a time.", lower_bound=1)


def main() -> None:
    """Writes both splits."""
    workdir = session.run_directory()
    config = session.load_run_config(workdir)
    runtime = session.make_runtime(config, flags.RUNTIME.value)
    experiment = config.call("train")
    task, data = experiment.task, experiment.data
    if not isinstance(task, TokenizerTask):
        raise ConfigError(f"--workdir must be the run of a tokenizer, {workdir} trains a "
                          f"{type(task).__name__}")
    config.refuse_unused(except_for=session.RUNTIME_BINDINGS)
    there = [split for split in SPLITS if (Path(OUT.value) / split).exists()]
    if there:
        raise ConfigError(f"--out must be a new folder; {OUT.value} holds {' and '.join(there)}. Remove them to write "
                          "the cache anew, or name another folder")
    checkpoint = session.open_checkpoint(workdir)
    spec = {name: leaf for name, leaf in task.init_spec().items() if name.startswith("params/tokenizer/")}
    params = select(restore_arrays(spec, experiment.seed, runtime, checkpoint), "params/tokenizer/")

    def encode(params: State, images_BHWC: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return apply(task.model.tokens, params, images_to_float(images_BHWC), Context(runtime.kernels))

    program = runtime.compile(encode)
    fingerprint = Pretrained(task.model, workdir).fingerprint()
    passes = {"train": (data.views(BATCH_SIZE.value, experiment.seed, NUM_VIEWS.value), NUM_VIEWS.value),
              "validation": (data.evaluation(BATCH_SIZE.value), 1)}
    for split, (batches, num_views) in passes.items():
        with TokenCacheWriter(
                OUT.value, split, levels=task.model.grid.as_lists(), fingerprint=fingerprint,
                image_size=data.image_size, class_names=data.class_names, num_views=num_views) as writer:
            for batch in batches:
                device = runtime.put(batch)
                writer.write(runtime.fetch([program(params, device["images"])])[0], batch["labels"], batch["valid"])
        logging.info("%s: %d views of %d pictures in %s", split, num_views, data.num_examples(split), OUT.value)


def run() -> None:
    """Entry point of the console script."""
    flags.run(main)


if __name__ == "__main__":
    run()
