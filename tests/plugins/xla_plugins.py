"""Run by test_plugins_xla.py in processes of their own: the plugins on a mesh of CPU_NUM_DEVICES virtual devices.

    python -m tests.plugins.xla_plugins RESULTS.npz

Two steps of 2 micro-batches of the EMA codebook, in which codes restart, with the encoder's stack frozen; then a
guided draw from a tiny autoregressive prior. Writes what came out, and what torch_xla counted.
"""
import functools
import sys

import numpy as np
import torch
import torch_xla.debug.metrics as xla_metrics

from vqim.contracts.grid import Level, TokenGrid
from vqim.contracts.learning import Learner
from vqim.contracts.placing import place
from vqim.nn.module import arrays_spec
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.sampler import StepwiseSampler
from vqim.runtime.settings import XlaSettings
from vqim.runtime.xla import XlaRuntime
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.terms import L2
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.gradient_task import GradientTask
from vqim.training.programs import Programs
from vqim.training.state import start

from .ema_quantizer import EmaQuantizer

NUM_STEPS, BATCH_SIZE = 3, 16


def train(runtime: XlaRuntime) -> dict[str, np.ndarray]:
    """Losses, statistics and parameters after some steps, and how often each step made XLA compile."""
    sizes = {"num_layers": 2, "num_heads": 2, "hidden": 16}
    quantizer = EmaQuantizer(16, vocabulary=24, code_dim=4, channels=2, restart_below=0.95)
    model = ImageTokenizer(ViTEncoder(16, 4, 16, **sizes), quantizer, ViTDecoder(16, 4, 16, **sizes), 16)
    learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(3e-3), ema_decay=0.9,
                                trains="(?!encoder/).*")
    task = GradientTask(TokenizerObjective(model, learner, [L2(1.0)]), num_micro_batches=2)
    state, programs = start(task.init_spec(), 0, runtime), Programs(task, runtime)
    generator, metrics, compiled = np.random.default_rng(0), [], []
    for _ in range(NUM_STEPS):
        images = generator.integers(0, 256, (BATCH_SIZE, 16, 16, 3), np.uint8)
        before = xla_metrics.counter_value("UncachedCompile") or 0
        metrics.append(programs("train", state, runtime.put({"images": images})))
        runtime.fetch([metrics[-1]])
        compiled.append((xla_metrics.counter_value("UncachedCompile") or 0) - before)
        state.step += 1
    shown = [name for name in state.arrays if name.startswith(("statistics/", "params/", "ema/"))]
    arrays = dict(zip(shown, runtime.fetch([state.arrays[name] for name in shown]), strict=True))
    return {**arrays, "metrics": np.stack(runtime.fetch(metrics)), "compiled": np.array(compiled),
            "slots": np.array([name for name in state.arrays if name.startswith("optimizer/")])}


def draw(runtime: XlaRuntime) -> dict[str, np.ndarray]:
    """Tokens drawn with guidance, at two scales by one program."""
    prior = AutoregressivePrior(TokenGrid((Level(2, 2, 1, 12),)), 3, 16, 2, 2, 32, class_dropout_rate=0.5)
    arrays = place(arrays_spec(prior), 0, runtime)
    labels_B, numbers_B = np.arange(8, dtype=np.int32) % 3, np.arange(8)
    found = {}
    for scale in (1.5, 4.0):
        before = xla_metrics.counter_value("UncachedCompile") or 0
        sampler = StepwiseSampler(guidance=scale, temperature=0.7, top_p=0.9)
        tokens_BNK = sampler.bind(prior, runtime, 8, torch.float32)(arrays, labels_B, numbers_B, 0)
        found[f"tokens/{scale}"], = runtime.fetch([tokens_BNK])
        found[f"compiled to draw/{scale}"] = np.array((xla_metrics.counter_value("UncachedCompile") or 0) - before)
    return found


if __name__ == "__main__":
    on_mesh = XlaRuntime(XlaSettings())
    results = train(on_mesh) | draw(on_mesh)
    fallbacks = [name for name in xla_metrics.counter_names() if name.startswith("aten::")]
    np.savez(sys.argv[1], **results, fallbacks=np.array(fallbacks, dtype=str))
