"""Run by test_xla_gradients.py in a process of its own: gradients that are written by hand, on 8 devices.

    python xla_gradient_checks.py results.npz

Writes arrays by name; the tests know what they should be.
"""
import sys

import numpy as np
import torch

from vqim.contracts.context import Context
from vqim.nn.layers import Dense
from vqim.nn.module import apply, spec
from vqim.runtime.settings import XlaSettings
from vqim.runtime.xla import XlaRuntime
from vqim.runtime.xla_kernels import XlaKernels

BATCH, TOKENS, INPUTS, OUTPUTS, RATE = 64, 4, 24, 16, 0.3


def draw(seed, *shape):
    """Numbers of N(0, 1) that bfloat16 holds."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(values).bfloat16().float().numpy()


def check_linear(runtime, results):
    """Gradients of a dense layer, a device's part of the batch being 8 images."""
    dense = Dense(INPUTS, OUTPUTS)
    values = {"kernel_IO": draw(0, INPUTS, OUTPUTS), "bias_O": draw(1, OUTPUTS)}
    params = {name: runtime.place(name, leaf, lambda index, name=name: values[name][index])
              for name, leaf in spec(dense).items()}
    batch = runtime.put({"x": draw(2, BATCH, TOKENS, INPUTS), "weights": draw(3, BATCH, TOKENS, OUTPUTS)})
    for dtype in (torch.bfloat16, torch.float32):
        for reduced in (None, "float32", "bfloat16"):
            kernels = XlaKernels(runtime.mesh, XlaSettings(gradient_dtype=reduced))

            def step(params, batch, kernels=kernels, dtype=dtype):
                leaves = {name: array.detach().requires_grad_() for name, array in params.items()}
                x = batch["x"].detach().requires_grad_()
                out = apply(dense.forward, leaves, x, Context(kernels, dtype))
                loss = (out * batch["weights"].to(dtype)).float().sum()
                return [loss.detach(), *torch.autograd.grad(loss, [x, *leaves.values()])]

            found = runtime.fetch(runtime.compile(step)(params, batch))
            for name, array in zip(["loss", "x", "kernel", "bias"], found, strict=True):
                results[f"{dtype} {reduced} {name}"] = array
    results |= {"kernel": values["kernel_IO"], "x": draw(2, BATCH, TOKENS, INPUTS),
                "weights": draw(3, BATCH, TOKENS, OUTPUTS)}


def check_gelu(runtime, results):
    """GELU with and without dropout, and its gradient."""
    arrays = {"gelu x": 3 * draw(4, BATCH, TOKENS, OUTPUTS), "gelu weights": draw(5, BATCH, TOKENS, OUTPUTS)}
    results |= arrays

    def step(batch, scalars, with_key):
        x, kernels = batch["gelu x"].detach().requires_grad_(), runtime.kernels
        key = scalars["key"] if with_key else None
        out = kernels.gelu_dropout(x, key, RATE)
        (grad,) = torch.autograd.grad(out, x, batch["gelu weights"])
        mask = kernels.keep_mask(scalars["key"], RATE, tuple(x.shape), x.device)
        return {"out": out.detach(), "grad": grad, "mask": mask}

    for with_key in (True, False):
        program = runtime.compile(lambda batch, scalars, with_key=with_key: step(batch, scalars, with_key))
        found = program(runtime.put(arrays), runtime.scalars({"key": 7}))
        for name, array in zip(found, runtime.fetch(list(found.values())), strict=True):
            results[f"gelu {name} {with_key}"] = array


def main():
    """Does all checks."""
    runtime = XlaRuntime(XlaSettings(fsdp=2))
    results = {}
    check_linear(runtime, results)
    check_gelu(runtime, results)
    np.savez(sys.argv[1], **results)


if __name__ == "__main__":
    main()
