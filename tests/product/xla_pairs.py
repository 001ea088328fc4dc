"""Run by test_product_xla.py in a process of its own: one pair a prior, on XLA's devices and on the torch runtime.

    python -m tests.product.xla_pairs FOLDER TOKENIZER_RUN

Prints a JSON object: for each prior, what it draws with guidance from random parameters, what two steps of training
lose, and how often XLA compiled.
"""
import dataclasses
import json
import pathlib
import sys
from typing import Any

import gin
import numpy as np
import torch
import torch_xla.debug.metrics as xla_metrics

from tests.product.conftest import NETWORKS, PRIORS, write_prior
from vqim.contracts.context import Context
from vqim.contracts.runtime import Runtime
from vqim.registry.config import load
from vqim.runtime.settings import XlaSettings
from vqim.runtime.torch import TorchRuntime
from vqim.runtime.xla import XlaRuntime
from vqim.state.init import Normal
from vqim.training.programs import Programs
from vqim.training.state import start

BATCH_SIZE = 8


def compiled() -> int:
    """How many programs XLA has compiled."""
    return int(xla_metrics.counter_value("UncachedCompile") or 0)


def run(task: Any, runtime: Runtime) -> dict[str, Any]:
    """Tokens, the images of them, losses, and programs that were compiled for each."""
    # New blocks are the identity: of these, no cache would show.
    spec = {name: dataclasses.replace(leaf, init=Normal(0.3)) if name.startswith("params/prior/") else leaf
            for name, leaf in task.init_spec().items()}
    state, objective, counts = start(spec, 0, runtime), task.objective, []
    sampler = objective.sampler.with_settings(guidance=1.5)
    draw = sampler.bind(objective.prior, runtime, BATCH_SIZE, torch.float32)
    for seed in (0, 1):
        before = compiled()
        arrays = objective.prior_arrays(state.arrays)
        tokens = draw(arrays, np.arange(BATCH_SIZE, dtype=np.int32), np.arange(BATCH_SIZE), seed)
        tokens_BNK, = runtime.fetch([tokens])
        counts.append(compiled() - before)

    def decode(arrays: dict[str, torch.Tensor], tokens_BNK: torch.Tensor) -> list[torch.Tensor]:
        return [objective.images(arrays, tokens_BNK, Context(runtime.kernels)).mean((1, 2, 3))]

    means_B, = runtime.fetch(runtime.compile(decode)(state.arrays, tokens))
    programs, losses = Programs(task, runtime), []
    images = np.random.default_rng(0).integers(0, 256, (BATCH_SIZE, 16, 16, 3), np.uint8)
    batch = {"images": images, "labels": np.arange(BATCH_SIZE, dtype=np.int32), "valid": np.ones(BATCH_SIZE, bool)}
    for _ in range(2):
        before = compiled()
        metrics = programs("train", state, runtime.put(batch))
        losses.append(programs.means([("train", metrics)])["loss"])
        counts.append(compiled() - before)
        state.step += 1
    return {"tokens": tokens_BNK.tolist(), "means": means_B.tolist(), "losses": losses, "compiled": counts}


def make_task(prior: str, folder: pathlib.Path, tokenizer_run: str) -> Any:
    """The task of a prior's gin file, without dropout, whose masks the runtimes draw from other bits."""
    gin.clear_config()
    none = "".join(f"prior.{NETWORKS[prior]}.{rate} = 0.0\n" for rate in ("dropout_rate", "class_dropout_rate"))
    file = write_prior(folder, "MoVQ", prior, more=none)
    return load([str(file)], [f"TOKENIZER_RUN = {tokenizer_run!r}"], []).call("train").task


if __name__ == "__main__":
    # The blocks' kernels are cut, and made whole while tokens are drawn.
    on_devices = XlaRuntime(XlaSettings(fsdp=2, rules=(("prior/blocks/.*kernel", {"in": "fsdp"}),)))
    found: dict[str, Any] = {}
    for prior in PRIORS:
        found[prior] = {name: run(make_task(prior, pathlib.Path(sys.argv[1]), sys.argv[2]), runtime)
                        for name, runtime in (("xla", on_devices), ("torch", TorchRuntime()))}
    fallbacks = [counter for counter in xla_metrics.counter_names() if counter.startswith("aten::")]
    print(json.dumps({"fallbacks": fallbacks, **found}))
