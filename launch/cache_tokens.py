"""Writes the tokens of a data set, so that a prior trains without running the tokenizer.

    python -m launch.cache_tokens --workdir=runs/tokenizer --num_views=10 --out=caches/emoji

Each view is the whole training split again, with another augmentation. Train on it with data.Tokens.path =
'caches/emoji' and train.data = @data.Tokens(). With training.GradientTask.evaluation_dtype = 'bfloat16' it encodes in
bfloat16, and prints which share of tokens differ from those in float32.

    B images in a batch, N positions, K codes a position
"""
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from absl import flags as absl_flags
from absl import logging
from torch import Tensor

from vqim.contracts.context import Context, dtype_name
from vqim.contracts.runtime import Runtime
from vqim.data.images import Images
from vqim.data.source import SPLITS
from vqim.data.token_cache import TokenCacheWriter
from vqim.frozen.from_run import fingerprint
from vqim.nn.module import apply
from vqim.registry.config import ConfigError
from vqim.state import sections
from vqim.state.leaf import State
from vqim.tokenizer.model import ImageTokenizer, images_to_float
from vqim.tokenizer.objective import TokenizerObjective
from vqim.training.loop import check_batch_size

from . import flags, session

OUT = absl_flags.DEFINE_string("out", None, "Folder for the cache.", required=True)
NUM_VIEWS = absl_flags.DEFINE_integer("num_views", 1, "Augmented passes over the training split.", lower_bound=1)
NUM_COMPARED = 1024
"""How many validation images, at least, are encoded in float32 too."""

BATCH_SIZE = absl_flags.DEFINE_integer("batch_size", 256, "Images at a time.", lower_bound=1)


def main() -> None:
    """Writes both splits."""
    config, run = session.open_run(needs_data=True)
    objective, data, runtime = run.experiment.task.objective, run.experiment.data, run.runtime
    if not isinstance(objective, TokenizerObjective):
        raise ConfigError(f"--workdir must be the run of a tokenizer, {flags.WORKDIR.value} trains a {objective.name}")
    if not isinstance(data, Images):
        raise ConfigError(f"train.data must be images to be encoded, such as @data.Images(), got {type(data).__name__}")
    config.refuse_unused(except_for=session.RUNTIME_BINDINGS)
    out = os.path.expanduser(OUT.value)
    there = [split for split in SPLITS if (Path(out) / split).exists()]
    if there:
        raise ConfigError(f"--out must be a new folder; {out} holds {' and '.join(there)}. Remove them to write "
                          "the cache again, or name another folder")
    try:
        check_batch_size(BATCH_SIZE.value, runtime, 1)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    tokenizer = objective.tokenizer
    arrays, names = sections.network_arrays(run.arrays, objective.name), tokenizer.deciding_arrays()
    deciding = dict(zip(names, runtime.fetch([arrays[name] for name in names]), strict=True))
    dtype = run.experiment.task.evaluation_dtype
    write_cache(out, tokenizer, arrays, data, runtime, fingerprint=fingerprint(deciding), batch_size=BATCH_SIZE.value,
                seed=run.experiment.seed, num_views=NUM_VIEWS.value, dtype=dtype)
    if dtype != torch.float32:
        share, count = changed_share(tokenizer, arrays, data, runtime, dtype, BATCH_SIZE.value)
        if runtime.process_index == 0:
            print(f"{share:.3%} of the tokens of {count:,} validation images differ from those in float32")


def write_cache(
    out: str | os.PathLike[str], model: ImageTokenizer, arrays: State, data: Images, runtime: Runtime, *,
    fingerprint: str, batch_size: int, seed: int, num_views: int, dtype: torch.dtype = torch.float32,
) -> None:
    """Encodes both splits. Each process loads and encodes its share of every batch, and process 0 writes them all.

    Args:
      out: the folder of the cache.
      model: the tokenizer.
      arrays: its arrays.
      data: the images to encode.
      runtime: where to run.
      fingerprint: the fingerprint of the tokenizer and its weights.
      batch_size: the batch size over all processes.
      seed: seed for the augmentation.
      num_views: the number of augmented passes over the training split.
      dtype: the dtype in which the tokenizer computes.
    """
    program = _encoding(model, runtime, dtype)
    processes = _processes(runtime)
    share = batch_size // runtime.process_count
    passes = {"train": (data.views(share, seed, num_views, **processes), num_views),
              "validation": (data.evaluation(share, **processes), 1)}
    for split, (batches, views) in passes.items():
        writes = runtime.process_index == 0
        with (TokenCacheWriter(
                out, split, levels=model.grid.as_lists(), fingerprint=fingerprint, image_size=data.image_size,
                class_names=data.class_names, num_views=views, computed_in=dtype_name(dtype),
        ) if writes else contextlib.nullcontext()) as writer:
            for batch in batches:
                written = runtime.fetch(program(arrays, runtime.put(batch)))
                if writer is not None:
                    writer.write(*written)
        logging.info("%s: %d views of %d images in %s", split, views, data.num_examples(split), out)
    runtime.hosts.wait("token cache")  # what process 0 writes is then there for all


def changed_share(
    model: ImageTokenizer, arrays: State, data: Images, runtime: Runtime, dtype: torch.dtype, batch_size: int,
) -> tuple[float, int]:
    """The share of tokens that a dtype changes against float32, and the number of validation images compared.

    These are the first batches of the validation split, `NUM_COMPARED` images or a few more.
    """
    rough, exact = _encoding(model, runtime, dtype), _encoding(model, runtime, torch.float32)
    share = batch_size // runtime.process_count
    num_changed = num_tokens = num_images = 0
    for batch in data.evaluation(share, **_processes(runtime)):
        placed = runtime.put(batch)
        (tokens_BNK, _, valid_B), (exact_BNK, _, _) = (runtime.fetch(run(arrays, placed)) for run in (rough, exact))
        changed_BNK: np.ndarray = (tokens_BNK != exact_BNK)[valid_B]
        num_changed, num_tokens = num_changed + int(changed_BNK.sum()), num_tokens + changed_BNK.size
        num_images += len(changed_BNK)
        if num_images >= NUM_COMPARED:
            break
    return num_changed / num_tokens, num_images


def _encoding(model: ImageTokenizer, runtime: Runtime, dtype: torch.dtype) -> Callable[..., list[Tensor]]:
    """The program that encodes a batch: its tokens, labels and validity."""
    def encode(arrays: State, batch: dict[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            tokens_BNK = apply(model.tokens, arrays, images_to_float(batch["images"]), Context(runtime.kernels, dtype))
            return [tokens_BNK, batch["labels"], batch["valid"]]

    return runtime.compile(encode)


def _processes(runtime: Runtime) -> dict[str, Any]:
    return {"process_index": runtime.process_index, "process_count": runtime.process_count}


def run() -> None:
    """Entry point of the console script."""
    flags.run(main)


if __name__ == "__main__":
    run()
