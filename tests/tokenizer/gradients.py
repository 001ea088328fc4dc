"""Gradients of what a quantizer gives."""
import torch

from vqim.nn.module import apply


def gradients(quantizer, params, latents, context, of):
    """Gradients of `of(quantized)` by the latents and by every parameter, zeros where there is none."""
    leaves = {name: array.clone().requires_grad_() for name, array in params.items()}
    latents = latents.clone().requires_grad_()
    found = torch.autograd.grad(of(apply(quantizer.forward, leaves, latents, context)), [latents, *leaves.values()],
                                allow_unused=True, materialize_grads=True)
    return found[0], dict(zip(leaves, found[1:], strict=True))
