"""Run by test_xla.py in a process of its own: updates on one XLA device, beside the same on the torch runtime.

Prints a JSON object for each optimizer: differences, and what torch_xla counted.
"""
import json

import torch
import torch_xla
import torch_xla.debug.metrics as xla_metrics

from vqim.optim.adafactor import Adafactor
from vqim.optim.adamw import AdamW
from vqim.state.leaf import Leaf, Spec

SPEC: Spec = {
    "kernel": Leaf((3, 40, 48), axes=("layers", "in", "out")),
    "convolution": Leaf((33, 16, 3, 3), axes=("out", "in", "kh", "kw")),
    "table": Leaf((70, 36), axes=("vocabulary", "features")),
    "bias": Leaf((3, 48), axes=("layers", "features")),
    "scalar": Leaf(()),
}
OPTIMIZERS = {
    "adamw": lambda: AdamW(weight_decay=0.1),
    "int8": lambda: Adafactor(min_factored_size=16, weight_decay=0.1, scale_by_parameter=True),
    "stochastic": lambda: Adafactor(min_factored_size=16, rounding="stochastic"),
    "bfloat16": lambda: Adafactor(min_factored_size=16, first_moment="bfloat16", decay="power"),
}
STEPS = 6


def arrays(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(leaf.shape, generator=generator) for name, leaf in SPEC.items()}


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device. A scalar travels as a vector: torch_xla makes constants of scalars that are 0 or 1, and
    one input of scalars that are equal, also to a number in the program; each is another program to compile."""
    return x.to(device, copy=True) if x.ndim else x.reshape(1).to(device, copy=True)[0]


def run(kind: str, device: torch.device) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Params and slots after some steps, and the number of compilations after each step."""
    optimizer = OPTIMIZERS[kind]()
    params = {name: send(x, device) for name, x in arrays(0).items()}
    slots = {name: send(torch.zeros(leaf.shape, dtype=leaf.dtype), device)
             for name, leaf in optimizer.init_spec(SPEC).items()}
    torch_xla.sync()
    compiled = []
    for step in range(STEPS):
        grads = {name: send(x, device) for name, x in arrays(step + 1).items()}
        optimizer.update(
            params, grads, slots, learning_rate=send(torch.tensor(1e-2 * (step + 1)), device),
            step=send(torch.tensor(step, dtype=torch.int32), device), keep=send(torch.tensor(step != 4), device))
        torch_xla.sync()
        data = xla_metrics.metric_data("CompileTime")
        compiled.append(data[0] if data else 0)
    return params | slots, compiled


def compare(kind: str) -> dict[str, object]:
    """What torch_xla counted for one kind of optimizer, and how far its results are from the torch runtime's."""
    here, _ = run(kind, torch.device("cpu"))
    xla_metrics.clear_all()
    there, compiled = run(kind, torch_xla.device())
    # counted before the results are fetched
    counters = [name for name in xla_metrics.counter_names() if name.startswith("aten::")]
    reads = xla_metrics.counter_value("xla::_local_scalar_dense") or 0
    differences = {}
    for name, expected in here.items():
        got = there[name].cpu()
        assert got.dtype == expected.dtype, name
        gap = (got.double() - expected.double()).abs()
        differences[name] = {
            "relative": (gap.max() / expected.double().abs().max().clamp(min=1e-30)).item(),
            "levels": gap.max().item(), "moved": (gap > 0).double().mean().item(),
            "int8": expected.dtype == torch.int8}
    return {"compiled": compiled, "aten": counters, "reads": reads, "differences": differences}


if __name__ == "__main__":
    print(json.dumps({kind: compare(kind) for kind in OPTIMIZERS}))
