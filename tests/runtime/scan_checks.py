"""Run by test_scan.py in a process of its own: gradients of a stack of blocks on a mesh, by each way to run its layers.

    python scan_checks.py results.npz

Writes arrays by name; the tests know what they should be.
"""
import sys

import numpy as np
import torch
import torch_xla
import torch_xla.core.xla_model as xm
import torch_xla.debug.metrics as metrics

from vqim.contracts.context import Context
from vqim.nn.module import apply, spec
from vqim.nn.transformer import Stack, TransformerBlock
from vqim.optim.network import gradients
from vqim.runtime.settings import XlaSettings
from vqim.runtime.xla import XlaRuntime
from vqim.runtime.xla_kernels import XlaKernels
from vqim.runtime.xla_scan import xla_scan

LAYERS, WIDTH, HIDDEN, HEADS, BATCH, TOKENS, STEPS = 3, 32, 64, 4, 8, 6, 3
RULES = [
    ("attention/(query|key|value)/kernel", {"in": "fsdp", "out": "tensor"}),
    ("attention/out/kernel", {"in": "tensor", "out": "fsdp"}),
    ("expand/kernel", {"in": "fsdp", "out": "tensor"}),
    ("contract/kernel", {"in": "tensor", "out": "fsdp"}),
]


class UnfilledKernels(XlaKernels):
    """A loop whose stacks hold no zeros before it writes into them."""

    def scan(self, body, carry, inputs):
        """NaNs, which would not go unnoticed."""
        def allocate(number, shape, like):
            return torch.full(shape, torch.nan, dtype=like.dtype, device=like.device)

        return xla_scan(body, carry, inputs, remat="products", place=self._place, allocate=allocate)


def make_stack(layers):
    """Blocks with dropout."""
    return Stack(TransformerBlock(WIDTH, HEADS, HIDDEN, causal=True, dropout_rate=0.2), layers)


def make_step(stack, kernels):
    """Loss and gradients of both results of a scan: the last carry, and what each layer gives."""
    def step(params, batch, scalars):
        context = Context(kernels, key=scalars["key"] * 3)
        leaves = {name: array.detach().requires_grad_() for name, array in params.items()}
        last_BTD = apply(stack.forward, leaves, batch["x"], context)
        means_LBD = apply(stack.collect, leaves, last_BTD, context, lambda x_BTD: x_BTD.mean(1))
        loss = (last_BTD * batch["weights"]).mean() + (means_LBD**2).mean()
        return {"loss": loss.detach(), **gradients(loss, leaves)}

    return step


def place(runtime, stack):
    """Parameters of N(0, 0.1^2), whatever the stack's depth."""
    rng, params = np.random.default_rng(0), {}
    for name, leaf in spec(stack).items():
        values = 0.1 * rng.standard_normal(leaf.shape).astype(np.float32)
        params[name] = runtime.place(f"params/stack/{name}", leaf, lambda index, values=values: values[index])
    return params


def compiled():
    """Number of compilations so far."""
    data = metrics.metric_data("CompileTime")
    return data[0] if data else 0


def main():
    """Does all checks."""
    runtime = XlaRuntime(XlaSettings(fsdp=2, tensor=2, rules=RULES))
    stack, results = make_stack(LAYERS), {}
    params = place(runtime, stack)
    rng = np.random.default_rng(1)
    x, weights = rng.standard_normal((2, BATCH, TOKENS, WIDTH)).astype(np.float32)
    batch = {"x": x, "weights": weights}
    ways = {"loop": XlaKernels(runtime.mesh, XlaSettings(unroll=True))}
    ways |= {remat: XlaKernels(runtime.mesh, XlaSettings(remat=remat)) for remat in ("none", "products", "blocks")}
    ways["unfilled"] = UnfilledKernels(runtime.mesh, XlaSettings())
    for way, kernels in ways.items():
        program, counts = runtime.compile(make_step(stack, kernels)), []
        for step in range(STEPS):
            out = program(params, runtime.put(batch), runtime.scalars({"key": 5 + step}))
            counts.append(compiled())
        results[f"{way} compilations"] = np.diff(counts)
        for name, array in zip(out, runtime.fetch(list(out.values())), strict=True):
            results[f"{way} {name}"] = array
    for depth in (2, 6):
        deep = make_stack(depth)
        step = make_step(deep, ways["products"])
        out = step(place(runtime, deep), runtime.put(batch), runtime.scalars({"key": 1}))
        text = torch_xla._XLAC._get_xla_tensors_hlo(list(out.values()))
        results[f"instructions {depth}"] = sum(" = " in line for line in text.splitlines())
    with torch.no_grad():
        program = runtime.compile(lambda params, batch: apply(stack.forward, params, batch["x"], Context(ways["none"])))
        results["evaluated"] = runtime.fetch([program(params, runtime.put(batch))])[0]
        program = runtime.compile(lambda params, batch: apply(stack.forward, params, batch["x"], Context(ways["loop"])))
        results["evaluated by loop"] = runtime.fetch([program(params, runtime.put(batch))])[0]
    update = make_step(stack, ways["blocks"])

    def train(params, batch, scalars):
        found = update(params, batch, scalars)
        for name, array in params.items():
            array.sub_(found[name])
        return found["loss"]

    runtime.compile(train)(params, runtime.put(batch), runtime.scalars({"key": 1}))
    xm.wait_device_ops()
    np.savez(sys.argv[1], **results)


if __name__ == "__main__":
    main()
