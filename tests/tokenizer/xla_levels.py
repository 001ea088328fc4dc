"""Run by test_levels_xla.py in a process of its own: a hierarchy with a drawn top on an XLA device, beside torch.

    python -m tests.tokenizer.xla_levels

Prints a JSON object: what evaluation gives on both runtimes, and what torch_xla counted in training.
"""
import functools
import json

import numpy as np
import torch
import torch_xla.debug.metrics as xla_metrics

from vqim.contracts.context import Context
from vqim.contracts.learning import Learner
from vqim.contracts.runtime import Runtime
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant, WarmupCosine
from vqim.runtime.settings import XlaSettings
from vqim.runtime.torch import TorchRuntime
from vqim.runtime.xla import XlaRuntime
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.quantizer.gumbel import GumbelQuantizer
from vqim.tokenizer.quantizer.hierarchical import HierarchicalQuantizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.terms import L2, LogitLaplace
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.gradient_task import GradientTask
from vqim.training.state import start

NUM_STEPS, BATCH_SIZE = 4, 4


def make_task() -> GradientTask:
    """Its temperature is another in every step."""
    top = GumbelQuantizer(32, 32, 12, WarmupCosine(1.0, 0.1, 0, NUM_STEPS))
    quantizer = HierarchicalQuantizer(16, top, VectorQuantizer(16 + 32, 8, 20, code_dim=4), num_blocks=1)
    sizes = {"num_layers": 1, "num_heads": 2, "hidden": 16}
    model = ImageTokenizer(ViTEncoder(16, 4, 16, **sizes), quantizer, ViTDecoder(16, 4, 40, **sizes), 16)
    learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(3e-3))
    return GradientTask(TokenizerObjective(model, learner, [L2(), LogitLaplace()]))


def run(runtime: Runtime) -> dict:
    """Codes and images of the initial state, then the losses of some steps, and how often each made XLA compile."""
    task = make_task()
    arrays = start(task.init_spec(), 0, runtime).arrays
    generator = np.random.default_rng(0)
    batch = runtime.put({"images": generator.integers(0, 256, (BATCH_SIZE, 16, 16, 3), np.uint8),
                         "labels": np.zeros(BATCH_SIZE, np.int32), "valid": np.ones(BATCH_SIZE, bool)})

    def evaluate(arrays: dict, batch: dict) -> list[torch.Tensor]:
        with torch.no_grad():
            items = task.objective.reconstruct(arrays, batch, Context(runtime.kernels))
        return [items.tokens_BNK, items.location_BCHW]

    def train(arrays: dict, batch: dict, scalars: dict) -> dict[str, torch.Tensor]:
        return task.train_step(arrays, batch, scalars, runtime.kernels)

    tokens, locations = runtime.fetch(runtime.compile(evaluate)(arrays, batch))
    top, bottom = task.objective.tokenizer.grid.split(tokens)
    program, losses, compiled = runtime.compile(train), [], []
    for step in range(NUM_STEPS):
        before = xla_metrics.counter_value("UncachedCompile") or 0
        scalars = runtime.scalars({**task.host_scalars(step), "step": step, "seed": 0})
        losses.append(float(runtime.fetch([program(arrays, batch, scalars)["loss"]])[0]))
        compiled.append((xla_metrics.counter_value("UncachedCompile") or 0) - before)
    return {"top": top.flatten().tolist(), "bottom": bottom.flatten().tolist(),
            "locations": locations.flatten().tolist(), "losses": losses, "compiled": compiled}


if __name__ == "__main__":
    xla = run(XlaRuntime(XlaSettings()))
    fallbacks = [name for name in xla_metrics.counter_names() if name.startswith("aten::")]
    print(json.dumps({"xla": xla, "torch": run(TorchRuntime()), "fallbacks": fallbacks}))
