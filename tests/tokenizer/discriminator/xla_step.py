"""Run by test_xla.py in a process of its own: discriminators on one XLA device, beside the torch runtime.

Prints a JSON object for each: differences of logits, gradients and gradients of R1, and what torch_xla counted.
"""
import json

import torch
import torch_xla
import torch_xla.debug.metrics as xla_metrics

from vqim.nn.context import Context
from vqim.nn.module import apply, spec
from vqim.runtime.torch import TorchKernels
from vqim.tokenizer.discriminator.patchgan import PatchGANDiscriminator
from vqim.tokenizer.discriminator.stylegan2 import StyleGAN2Discriminator

DISCRIMINATORS = {
    "stylegan2, few channels": StyleGAN2Discriminator(8, channel_base=64),
    "stylegan2, many channels": StyleGAN2Discriminator(8, channel_base=1040),
    "patchgan": PatchGANDiscriminator(16, base_channels=4, num_halvings=2),
}


def step(discriminator: torch.nn.Module, device: torch.device) -> dict[str, torch.Tensor]:
    """Logits, their gradients, and R1's, as a training step takes them."""
    generator = torch.Generator().manual_seed(0)
    size = discriminator.image_size
    images = torch.rand(4, 3, size, size, generator=generator).to(device).requires_grad_()
    params = {name: torch.randn(leaf.shape, generator=generator).to(device).requires_grad_()
              for name, leaf in spec(discriminator).items()}
    # Nothing here scans, attends or draws: the kernels are not asked for.
    logits = apply(discriminator.forward, params, images, Context(TorchKernels()))
    leaves = {"images": images, **params}
    grads = torch.autograd.grad(torch.nn.functional.softplus(logits).sum(), list(leaves.values()), create_graph=True)
    slope, = torch.autograd.grad(logits.sum(), images, create_graph=True)
    r1_grads = torch.autograd.grad(slope.square().sum(), list(params.values()), materialize_grads=True)
    arrays = {"logits": logits, **{f"gradient {n}": g for n, g in zip(leaves, grads, strict=True)},
              **{f"r1 {n}": g for n, g in zip(params, r1_grads, strict=True)}}
    return {name: array.detach() for name, array in arrays.items()}


def compare(discriminator: torch.nn.Module) -> dict[str, object]:
    """What torch_xla counted for one discriminator, and how far its results are from the torch runtime's."""
    xla_metrics.clear_all()
    there = step(discriminator, torch_xla.device())  # first: autograd counts devices at its first backward pass
    torch_xla.sync()
    counters = [name for name in xla_metrics.counter_names() if name.startswith("aten::")]
    here = step(discriminator, torch.device("cpu"))
    differences = {
        name: ((there[name].cpu() - array).abs().max() / array.abs().max().clamp(min=1e-6)).item()
        for name, array in here.items()}
    return {"aten": counters, "differences": differences}


if __name__ == "__main__":
    print(json.dumps({name: compare(discriminator) for name, discriminator in DISCRIMINATORS.items()}))
