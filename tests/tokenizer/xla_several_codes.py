"""Run by test_several_codes_xla.py in processes of their own: K codes a position on CPU_NUM_DEVICES virtual devices.

    python -m tests.tokenizer.xla_several_codes RESULTS.npz

Three steps of 2 micro-batches: residual codes with an EMA codebook at the top, codes of two channels with restarts at
the bottom, and a decoder that all of them modulate, from Fourier features.
"""
import functools
import sys

import numpy as np
import torch_xla.debug.metrics as xla_metrics

from vqim.contracts.learning import Learner
from vqim.nn.convolution import SpatialNorm
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.runtime.settings import XlaSettings
from vqim.runtime.xla import XlaRuntime
from vqim.tokenizer.cnn import CNNDecoder
from vqim.tokenizer.initial import FourierFeatures
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.quantizer.hierarchical import HierarchicalQuantizer
from vqim.tokenizer.quantizer.multichannel import MultichannelQuantizer
from vqim.tokenizer.quantizer.residual import ResidualQuantizer
from vqim.tokenizer.terms import L1
from vqim.tokenizer.vit import ViTEncoder
from vqim.training.gradient_task import GradientTask
from vqim.training.programs import Programs
from vqim.training.state import start

NUM_STEPS, BATCH_SIZE = 3, 16


def make_task() -> GradientTask:
    """16x16 images, 2x2x2 and 4x4x2 codes."""
    quantizer = HierarchicalQuantizer(
        16, ResidualQuantizer(32, 32, 24, code_dim=4, depth=2, ema_decay=0.9, restart_below=0.95),
        MultichannelQuantizer(16 + 32, 8, 24, code_dim=8, channels=2, restart_below=0.96), num_blocks=1)
    decoder = CNNDecoder(32, (1, 1, 1), 1, 40, attention=None, norm_levels=2, initial=FourierFeatures,
                         norm=functools.partial(SpatialNorm, condition_width=4 + 8))
    model = ImageTokenizer(ViTEncoder(16, 4, 16, num_layers=1, num_heads=2, hidden=16), quantizer, decoder, 16)
    learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(1e-3))
    return GradientTask(TokenizerObjective(model, learner, [L1()]), num_micro_batches=2)


def train(runtime: XlaRuntime) -> dict[str, np.ndarray]:
    """Statistics and codebooks after a step, metrics of some steps, and how often each made XLA compile.

    Later steps of eight devices may differ from those of one: two codes that restart at nearly the same latent are as
    good as each other, and rounding decides between them.
    """
    task = make_task()
    state, programs = start(task.init_spec(), 0, runtime), Programs(task, runtime)
    generator, metrics, compiled, arrays = np.random.default_rng(0), [], [], {}
    for _ in range(NUM_STEPS):
        images = generator.integers(0, 256, (BATCH_SIZE, 16, 16, 3), np.uint8)
        before = xla_metrics.counter_value("UncachedCompile") or 0
        metrics.append(programs("train", state, runtime.put({"images": images})))
        runtime.fetch([metrics[-1]])
        compiled.append((xla_metrics.counter_value("UncachedCompile") or 0) - before)
        state.step += 1
        shown = [name for name in state.arrays if name.startswith("statistics/") or "codebook" in name]
        shown = [name for name in shown if not name.startswith("optimizer/")]
        fetched = dict(zip(shown, runtime.fetch([state.arrays[name] for name in shown]), strict=True))
        arrays = arrays or fetched
    return {**arrays, "metrics": np.stack(runtime.fetch(metrics)), "compiled": np.array(compiled)}


if __name__ == "__main__":
    results = train(XlaRuntime(XlaSettings()))
    fallbacks = [name for name in xla_metrics.counter_names() if name.startswith("aten::")]
    np.savez(sys.argv[1], **results, fallbacks=np.array(fallbacks, dtype=str))
