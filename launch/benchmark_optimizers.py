"""The benchmark's case of optimizers: one step of each, against torch.optim.AdamW."""
from collections.abc import Callable

import torch

from vqim.contracts.optimizer import Optimizer
from vqim.contracts.placing import place
from vqim.contracts.runtime import Runtime
from vqim.optim.adafactor import Adafactor
from vqim.optim.adamw import AdamW
from vqim.state.init import Normal
from vqim.state.leaf import Leaf, Spec

from .benchmark_cases import Case, Size

Step = Callable[[], torch.Tensor]
"""Makes one update; returns something to wait for."""


def optimizer(size: Size, runtime: Runtime) -> Case:
    """One update of the stacked feed-forward weights of all blocks; 'fused' exists only outside of XLA."""
    spec = block_weights(size.num_layers, size.width)
    contestants = {
        "AdamW": our_step(AdamW(), spec, runtime),
        "Adafactor float32": our_step(Adafactor(first_moment="float32"), spec, runtime),
        "Adafactor int8": our_step(Adafactor(), spec, runtime),
        "torch.optim.AdamW": torch_step(spec, runtime, fused=False),
    }
    if runtime.describe()["runtime"] == "torch":
        contestants["torch.optim.AdamW fused"] = torch_step(spec, runtime, fused=True)
    # Read: parameter, gradient and two moments; written: all but the gradient.
    return Case("parameters", sum(leaf.size for leaf in spec.values()), contestants,
                num_bytes=7 * sum(leaf.num_bytes for leaf in spec.values()))


def block_weights(layers: int, width: int) -> Spec:
    """Stacked feed-forward weights of some transformer blocks."""
    return {
        "up/kernel": Leaf((layers, width, 4 * width), Normal(), ("layers", "in", "out")),
        "down/kernel": Leaf((layers, 4 * width, width), Normal(), ("layers", "in", "out")),
        "down/bias": Leaf((layers, width), Normal(), ("layers", "features")),
    }


def our_step(optimizer: Optimizer, spec: Spec, runtime: Runtime) -> Step:
    """One update by an optimizer of this project."""
    params, grads = place(spec, 0, runtime), place(spec, 1, runtime)
    slots = place(optimizer.init_spec(spec), 0, runtime)

    @runtime.compile
    def update(rate: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        return optimizer.update(
            params, grads, slots, learning_rate=rate, step=number, keep=torch.isfinite(rate))["update_norm"]

    def step() -> torch.Tensor:
        scalars = runtime.scalars({"rate": 1e-3, "number": 100})
        norm: torch.Tensor = update(scalars["rate"], scalars["number"])
        return norm

    return step


def torch_step(spec: Spec, runtime: Runtime, fused: bool) -> Step:
    """One update by torch.optim.AdamW."""
    params = list(place(spec, 0, runtime).values())
    for param, grad in zip(params, place(spec, 1, runtime).values(), strict=True):
        param.requires_grad_(True)
        param.grad = grad
    optimizer = torch.optim.AdamW(params, lr=1e-3, fused=fused)
    update = runtime.compile(optimizer.step)

    def step() -> torch.Tensor:
        update()
        return params[-1].detach()

    return step
