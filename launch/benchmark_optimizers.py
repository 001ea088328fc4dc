"""Times one step of each optimizer against torch.optim.AdamW, interleaved in one process.

    python -m launch.benchmark_optimizers --runtime=torch --threads=1

Look at the ratios: every round runs each optimizer once, so that a busy machine slows all of them equally.
"""
import statistics
import time
from collections.abc import Callable

import torch
from absl import app, flags

from vqim.contracts.optimizer import Optimizer
from vqim.contracts.runtime import Runtime
from vqim.optim.adafactor import Adafactor
from vqim.optim.adamw import AdamW
from vqim.runtime.settings import TorchSettings, XlaSettings
from vqim.state.init import Normal
from vqim.state.leaf import Leaf, Spec, State

_RUNTIME = flags.DEFINE_enum("runtime", "torch", ["torch", "xla"], "Where the steps run.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "How often each optimizer steps; the median counts.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", None, "CPU threads of the torch runtime; torch's choice if not given.")
_LAYERS = flags.DEFINE_integer("layers", 4, "Transformer blocks, stacked.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 768, "Their width; the hidden layer is four times as wide.", lower_bound=128)

Step = Callable[[], torch.Tensor]
"""Makes one update; returns something to wait for."""


def make_runtime() -> Runtime:
    """The runtime that --runtime names, on all devices."""
    if _RUNTIME.value == "xla":
        from vqim.runtime.xla import XlaRuntime  # torch_xla may not be installed
        return XlaRuntime(XlaSettings())
    from vqim.runtime.torch import TorchRuntime
    return TorchRuntime(TorchSettings(num_threads=_THREADS.value))


def block_weights(layers: int, width: int) -> Spec:
    """Stacked feed-forward weights of some transformer blocks."""
    return {
        "up/kernel": Leaf((layers, width, 4 * width), Normal(), ("layers", "in", "out")),
        "down/kernel": Leaf((layers, 4 * width, width), Normal(), ("layers", "in", "out")),
        "down/bias": Leaf((layers, width), Normal(), ("layers", "features")),
    }


def place(spec: Spec, runtime: Runtime, seed: int) -> State:
    """Arrays on the device, filled with each leaf's initial values."""
    def filled(name: str, leaf: Leaf) -> torch.Tensor:
        return runtime.place(name, leaf, lambda index: leaf.init(name, leaf.shape, seed, index))

    return {name: filled(name, leaf) for name, leaf in spec.items()}


def our_step(optimizer: Optimizer, spec: Spec, runtime: Runtime) -> Step:
    """One update by an optimizer of this project."""
    params, grads = place(spec, runtime, 0), place(spec, runtime, 1)
    slots = place(optimizer.init_spec(spec), runtime, 0)

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
    params = list(place(spec, runtime, 0).values())
    for param, grad in zip(params, place(spec, runtime, 1).values(), strict=True):
        param.requires_grad_(True)
        param.grad = grad
    optimizer = torch.optim.AdamW(params, lr=1e-3, fused=fused)
    update = runtime.compile(optimizer.step)

    def step() -> torch.Tensor:
        update()
        return params[-1].detach()

    return step


def milliseconds(steps: dict[str, Step], runtime: Runtime, rounds: int) -> dict[str, float]:
    """The median time of each step over some rounds; each round runs every step once."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(-3, rounds):  # the first three rounds compile, and touch all memory
        for name, step in steps.items():
            begin = time.perf_counter()
            runtime.fetch([step()])
            if round_number >= 0:
                times[name].append(time.perf_counter() - begin)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def main(argv: list[str]) -> None:
    """Prints milliseconds and ratios to torch.optim.AdamW."""
    if len(argv) > 1:
        raise app.UsageError(f"no arguments beside flags are expected, got {argv[1:]}")
    runtime = make_runtime()
    spec = block_weights(_LAYERS.value, _WIDTH.value)
    steps = {
        "torch.optim.AdamW": torch_step(spec, runtime, fused=False),
        "AdamW": our_step(AdamW(), spec, runtime),
        "Adafactor float32": our_step(Adafactor(first_moment="float32"), spec, runtime),
        "Adafactor int8": our_step(Adafactor(), spec, runtime),
    }
    if _RUNTIME.value == "torch":
        steps["torch.optim.AdamW fused"] = torch_step(spec, runtime, fused=True)
    times = milliseconds(steps, runtime, _ROUNDS.value)
    size = sum(leaf.size for leaf in spec.values())
    print(f"{runtime.describe()}\n{size / 1e6:.1f}M parameters, median of {_ROUNDS.value} steps")
    baselines = [name for name in ("torch.optim.AdamW", "torch.optim.AdamW fused") if name in times]
    print(f"{'':24s}{'ms':>9s}" + "".join(f"{'x ' + name:>28s}" for name in baselines))
    for name, value in times.items():
        print(f"{name:24s}{value:9.1f}" + "".join(f"{value / times[b]:28.2f}" for b in baselines))


if __name__ == "__main__":
    app.run(main)
