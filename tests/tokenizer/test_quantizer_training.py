"""Every quantizer learns: stage 1 on real images, some steps long, against the best answer without looking."""
import functools

import numpy as np
import pytest
import torch

from vqim.contracts.context import Context
from vqim.contracts.learning import Learner
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant, WarmupCosine
from vqim.runtime.torch import TorchRuntime
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.quantizer.gumbel import GumbelQuantizer
from vqim.tokenizer.quantizer.hierarchical import HierarchicalQuantizer
from vqim.tokenizer.quantizer.multichannel import MultichannelQuantizer
from vqim.tokenizer.quantizer.residual import ResidualQuantizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.terms import L2, LogitLaplace
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.gradient_task import GradientTask
from vqim.training.state import start

RUNTIME, WIDTH, STEPS = TorchRuntime(), 32, 60

QUANTIZERS = {
    "4 dimensions": lambda: VectorQuantizer(WIDTH, WIDTH, 32, code_dim=4),
    "256 dimensions": lambda: VectorQuantizer(WIDTH, WIDTH, 32, code_dim=256),
    "not factorised": lambda: VectorQuantizer(WIDTH, WIDTH, 32, code_dim=None),
    "4 dimensions, not normalised": lambda: VectorQuantizer(WIDTH, WIDTH, 32, code_dim=4, normalize=False),
    "neither factorised nor normalised": lambda: VectorQuantizer(WIDTH, WIDTH, 32, code_dim=None, normalize=False),
    "Gumbel": lambda: GumbelQuantizer(WIDTH, WIDTH, 32, WarmupCosine(1.0, 1 / 16, 0, STEPS)),
    "Gumbel, mixed": lambda: GumbelQuantizer(
        WIDTH, WIDTH, 32, WarmupCosine(1.0, 1 / 16, 0, STEPS), straight_through=False),
    "Gumbel, latents as logits": lambda: GumbelQuantizer(
        WIDTH, WIDTH, WIDTH, WarmupCosine(1.0, 1 / 16, 0, STEPS), project=False),
    "four channels": lambda: MultichannelQuantizer(WIDTH, WIDTH, 32, code_dim=16, channels=4),
    "four channels, EMA and restarts": lambda: MultichannelQuantizer(
        WIDTH, WIDTH, 32, code_dim=16, channels=4, ema_decay=0.9, restart_below=0.1),
    "residual": lambda: ResidualQuantizer(WIDTH, WIDTH, 32, code_dim=8, depth=3),
    "residual, EMA and restarts": lambda: ResidualQuantizer(
        WIDTH, WIDTH, 32, code_dim=8, depth=3, ema_decay=0.9, restart_below=0.1),
    "hierarchical": lambda: HierarchicalQuantizer(
        WIDTH, VectorQuantizer(WIDTH, WIDTH, 32, 4), VectorQuantizer(2 * WIDTH, WIDTH, 32, 4), num_blocks=1),
}
COLLAPSED = "neither factorised nor normalised"
"""One code for all images after 20 steps: what the paper saw without normalisation (Table 4, 2% of the codes)."""


@pytest.mark.parametrize("name", QUANTIZERS)
def test_reconstructions_become_better_than_the_mean_image(emoji, name):
    quantizer = QUANTIZERS[name]()
    sizes = {"num_layers": 1, "num_heads": 4, "hidden": 48}
    model = ImageTokenizer(ViTEncoder(16, 4, WIDTH, **sizes), quantizer,
                           ViTDecoder(16, 4, quantizer.width_out, **sizes), image_size=16)
    learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(3e-3))
    task = GradientTask(TokenizerObjective(model, learner, [L2(), LogitLaplace()]))
    state = start(task.init_spec(), 0, RUNTIME).arrays
    batch = RUNTIME.put({"images": emoji, "labels": np.zeros(len(emoji), np.int32),
                         "valid": np.ones(len(emoji), bool)})
    history = []
    for step in range(STEPS):
        scalars = RUNTIME.scalars({**task.host_scalars(step), "step": step, "seed": 0})
        history.append(task.train_step(state, batch, scalars, RUNTIME.kernels))
    pixels = batch["images"].double() / 255
    of_the_mean_image = (pixels - pixels.mean(0)).square().mean().item()
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["loss/l2"] < 0.6 * history[0]["loss/l2"]
    with torch.no_grad():
        items = task.objective.reconstruct(state, batch, Context(RUNTIME.kernels))
    of_evaluation = (items.originals_BCHW - (items.location_BCHW.sigmoid() - 0.1) / 0.8).square().mean()
    if name != COLLAPSED:
        assert history[0]["loss/l2"] > of_the_mean_image
        assert max(history[-1]["loss/l2"], of_evaluation) < of_the_mean_image
    usage = {key for key in history[-1] if key.endswith("batch_usage")}
    assert usage == {f"{name}/batch_usage" for name in model.grid.codebook_names}
