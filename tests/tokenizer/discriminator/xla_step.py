"""Run by test_xla.py in a process of its own: discriminators on XLA's devices, beside the torch runtime.

    python -m tests.tokenizer.discriminator.xla_step

Prints a JSON object for each: differences of logits, gradients and gradients of R1, and what torch_xla counted.
"""
import json

import numpy as np
import torch
import torch_xla.debug.metrics as xla_metrics
from torch import Tensor

from tests.tokenizer.discriminator.conftest import fan_in
from vqim.contracts.context import Context
from vqim.nn.module import apply, spec
from vqim.runtime.settings import XlaSettings
from vqim.runtime.torch import TorchRuntime
from vqim.runtime.xla import XlaRuntime
from vqim.state.init import Normal
from vqim.tokenizer.discriminator import stylegan2
from vqim.tokenizer.discriminator.patchgan import PatchGANDiscriminator
from vqim.tokenizer.discriminator.stylegan2 import StyleGAN2Discriminator

stylegan2._FEW_CHANNELS = 8
DISCRIMINATORS = {
    "stylegan2": StyleGAN2Discriminator(16, channel_base=128, num_strips=2),  # few channels, in strips, then many
    "patchgan": PatchGANDiscriminator(16, base_channels=4, num_halvings=2),
}
BATCH_SIZE = 8  # two images on each of four devices, and so two devices for each group of StyleGAN2's


def run(discriminator: torch.nn.Module, runtime: TorchRuntime | XlaRuntime) -> dict[str, np.ndarray]:
    """Logits, their gradients, and R1's, as a training step takes them."""
    leaves = spec(discriminator)
    params = {
        name: runtime.place(name, leaf, lambda index, n=name, leaf=leaf: Normal(fan_in(leaf) ** -0.5)(
            n, leaf.shape, 0, index))
        for name, leaf in leaves.items()}
    size = discriminator.image_size
    images = np.random.default_rng(0).random((BATCH_SIZE, 3, size, size), np.float32)

    def differentiate(params: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        params = {name: array.detach().requires_grad_() for name, array in params.items()}
        images_BCHW = batch["images"].detach().requires_grad_()
        logits = apply(discriminator.forward, params, images_BCHW, Context(runtime.kernels))
        loss = torch.nn.functional.softplus(logits).sum()
        grads = torch.autograd.grad(loss, [images_BCHW, *params.values()], retain_graph=True)
        slope, = torch.autograd.grad(logits.sum(), images_BCHW, create_graph=True)
        r1_grads = torch.autograd.grad(slope.square().sum(), list(params.values()), materialize_grads=True)
        named = {f"gradient {name}": grad for name, grad in zip(["images", *params], grads, strict=True)}
        named |= {f"r1 {name}": grad for name, grad in zip(params, r1_grads, strict=True)}
        return {"logits": logits.detach(), **named}

    arrays = runtime.compile(differentiate)(params, runtime.put({"images": images}))
    return dict(zip(arrays, runtime.fetch(list(arrays.values())), strict=True))


def largest_gap(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(abs(got - expected).max() / max(abs(expected).max(), 1e-6))


if __name__ == "__main__":
    xla = XlaRuntime(XlaSettings())
    there = {name: run(discriminator, xla) for name, discriminator in DISCRIMINATORS.items()}
    fallbacks = [name for name in xla_metrics.counter_names() if name.startswith("aten::")]
    here = {name: run(discriminator, TorchRuntime()) for name, discriminator in DISCRIMINATORS.items()}
    differences = {
        name: {array: largest_gap(there[name][array], value) for array, value in arrays.items()}
        for name, arrays in here.items()}
    print(json.dumps({"mesh": list(xla.mesh_shape.values()), "fallbacks": fallbacks, "differences": differences}))
