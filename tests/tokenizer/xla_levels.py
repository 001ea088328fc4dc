"""Run by test_levels_xla.py in a process of its own: a hierarchy with a drawn top on an XLA device, beside torch.

    python -m tests.tokenizer.xla_levels

Prints a JSON object: what evaluation gives on both runtimes, and what torch_xla counted in training.
"""
import json

import numpy as np
import torch
import torch_xla.debug.metrics as xla_metrics

from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant, WarmupCosine
from vqim.runtime.runtime import Runtime
from vqim.runtime.settings import XlaSettings
from vqim.runtime.torch import TorchRuntime
from vqim.runtime.xla import XlaRuntime
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.quantizer.gumbel import GumbelQuantizer
from vqim.tokenizer.quantizer.hierarchical import HierarchicalQuantizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.task import TokenizerTask
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.state import start

NUM_STEPS, BATCH_SIZE = 4, 4


def make_task() -> TokenizerTask:
    """Its temperature is another in every step."""
    top = GumbelQuantizer(32, 32, 12, WarmupCosine(1.0, 0.1, 0, NUM_STEPS))
    quantizer = HierarchicalQuantizer(16, top, VectorQuantizer(16 + 32, 8, 20, code_dim=4), num_blocks=1)
    sizes = {"num_layers": 1, "num_heads": 2, "hidden": 16}
    model = ImageTokenizer(ViTEncoder(16, 4, 16, **sizes), quantizer, ViTDecoder(16, 4, 40, **sizes), 16)
    return TokenizerTask(model, AdamW(), Constant(3e-3))


def run(runtime: Runtime) -> dict:
    """Codes and pictures of the initial state, then the losses of some steps, and how often each made XLA compile."""
    task = make_task()
    arrays = start(task.init_spec(), 0, runtime).arrays
    generator = np.random.default_rng(0)
    batch = runtime.put({"images": generator.integers(0, 256, (BATCH_SIZE, 16, 16, 3), np.uint8)})

    def evaluate(arrays: dict, batch: dict) -> list[torch.Tensor]:
        with torch.no_grad():
            _, quantized, reconstruction = task.reconstruct(arrays, batch, runtime.kernels)
        return [*quantized.indices, reconstruction.mean_BCHW]

    def train(arrays: dict, batch: dict, scalars: dict) -> dict[str, torch.Tensor]:
        return task.train_step(arrays, batch, scalars, runtime.kernels)

    top, bottom, pictures = runtime.fetch(runtime.compile(evaluate)(arrays, batch))
    program, losses, compiled = runtime.compile(train), [], []
    for step in range(NUM_STEPS):
        before = xla_metrics.counter_value("UncachedCompile") or 0
        scalars = runtime.scalars({**task.host_scalars(step), "step": step, "seed": 0})
        losses.append(float(runtime.fetch([program(arrays, batch, scalars)["loss"]])[0]))
        compiled.append((xla_metrics.counter_value("UncachedCompile") or 0) - before)
    return {"top": top.flatten().tolist(), "bottom": bottom.flatten().tolist(), "pictures": pictures.flatten().tolist(),
            "losses": losses, "compiled": compiled}


if __name__ == "__main__":
    xla = run(XlaRuntime(XlaSettings()))
    fallbacks = [name for name in xla_metrics.counter_names() if name.startswith("aten::")]
    print(json.dumps({"xla": xla, "torch": run(TorchRuntime()), "fallbacks": fallbacks}))
