"""Run by test_cnn_xla.py in a process of its own: convolutional networks on one XLA device and on the torch runtime.

Prints a JSON object for each: how far outputs and gradients are apart, and what torch_xla counted.
"""
import json

import torch
import torch_xla
import torch_xla.debug.metrics as xla_metrics

from vqim.contracts.context import Context, Kernels
from vqim.nn.module import apply, spec
from vqim.runtime.settings import XlaSettings
from vqim.runtime.torch import TorchKernels
from vqim.runtime.xla import XlaRuntime
from vqim.tokenizer.cnn import CNNDecoder, CNNEncoder
from vqim.tokenizer.dvae import DVAEDecoder, DVAEEncoder
from vqim.tokenizer.model import Codes

NETWORKS = {
    "cnn": (CNNEncoder(64, (1, 1), 1, 8), CNNDecoder(64, (1, 1), 1, 8)),
    "dvae": (DVAEEncoder(16, 1, 6), DVAEDecoder(16, 1, 6)),
}


def run(name: str, kernels: Kernels, device: torch.device) -> dict[str, torch.Tensor]:
    """The image that a decoder makes of an encoder's latents, and the gradients of a loss of it, on the device."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 16, 16, generator=generator).to(device)
    context, leaves = Context(kernels), {}
    for part, module in zip(("encoder", "decoder"), NETWORKS[name], strict=True):
        leaves[part] = {
            path: (0.2 * torch.randn(leaf.shape, generator=generator)).to(device).requires_grad_()
            for path, leaf in spec(module).items()}
    encoder, decoder = NETWORKS[name]
    latents = apply(encoder.forward, leaves["encoder"], images, context)
    image = apply(decoder.forward, leaves["decoder"], Codes(latents, latents), context).mean_BCHW
    (image - images).square().mean().backward()
    grads = {f"{part}/{path}": leaf.grad for part, of_part in leaves.items() for path, leaf in of_part.items()
             if leaf.grad is not None}
    return {"image": image.detach(), **grads}


def compare(name: str, runtime: XlaRuntime) -> dict[str, object]:
    """What torch_xla counted for one pair of networks, and how far its results are from the torch runtime's."""
    here = run(name, TorchKernels(), torch.device("cpu"))
    xla_metrics.clear_all()
    there = run(name, runtime.kernels, torch_xla.device())
    torch_xla.sync()
    counters = [counter for counter in xla_metrics.counter_names() if counter.startswith("aten::")]
    assert here.keys() == there.keys()
    # Some have no gradient but what rounding makes of zero: keys' biases, biases before a norm, cells that never fire.
    smallest = 1e-3 * max(x.abs().max() for path, x in here.items() if path != "image")
    gaps = {path: ((there[path].cpu() - x).abs().max() / x.abs().max().clamp_min(smallest)).item()
            for path, x in here.items()}
    return {"aten": counters, "gaps": gaps}


if __name__ == "__main__":
    one_device = XlaRuntime(XlaSettings())
    print(json.dumps({name: compare(name, one_device) for name in NETWORKS}))
