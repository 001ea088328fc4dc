"""Run by test_topology.py in a process of its own: the debug tokenizer's step for four absent v4 chips.

    python topology_checks.py results.json
"""
import json
import os
import sys
from pathlib import Path

from vqim.runtime import tpu_compiler

os.environ.update(tpu_compiler.environment(os.environ))

import numpy as np  # noqa: E402  the environment comes first
import torch  # noqa: E402

import vqim.registry.components  # noqa: E402, F401
from vqim.contracts.context import Context  # noqa: E402
from vqim.nn.layers import Dense  # noqa: E402
from vqim.nn.module import apply, spec  # noqa: E402
from vqim.registry.config import load  # noqa: E402
from vqim.runtime.hlo import Module  # noqa: E402
from vqim.runtime.settings import XlaSettings  # noqa: E402
from vqim.runtime.topology import NothingComputedError, TopologyRuntime  # noqa: E402
from vqim.state.leaf import Leaf  # noqa: E402
from vqim.training.programs import Programs  # noqa: E402
from vqim.training.state import TrainState  # noqa: E402

RULES = [("expand/kernel", {"in": "fsdp", "out": "tensor"})]


def refuse(index):
    """A fill that must not be called."""
    raise AssertionError("placeholders have no values")


def check_step(target, results):
    """One training step: what is donated, what is cut, what it is compiled to."""
    task = load(["gin/debug/tokenizer_tiny.gin"], [], []).call("train").task
    spec = task.init_spec()
    runtime = TopologyRuntime(XlaSettings(fsdp=2, tensor=2, rules=RULES), target)
    arrays = {name: runtime.place(name, leaf, refuse) for name, leaf in spec.items()}
    size = task.objective.tokenizer.image_size
    batch = {"images": np.broadcast_to(np.uint8(0), (8, size, size, 3)), "labels": np.zeros(8, np.int32),
             "valid": np.zeros(8, bool)}
    programs = Programs(task, runtime)
    for _ in range(2):
        programs(task.objective.program(0), TrainState(arrays, 0, 0), runtime.put(batch))
    (traced,) = runtime.traced
    results["state"] = sorted(name for name in spec if not name.startswith("frozen/"))
    compiled = traced.compile(target, runtime.mesh_shape)
    module = Module(compiled.hlo)
    results["aliased"] = sorted(traced.arguments[number].name for number in module.aliases())
    results["aliased to itself"] = all(
        traced.arguments[number].name == traced.results[result].name for number, result in module.aliases().items())
    results["argument shapes"] = {
        traced.arguments[number].name: shape for number, shape in parameter_shapes(module).items()}
    results["expected shapes"] = {name: cut_shape(name, leaf) for name, leaf in spec.items()}
    results["operations"] = sorted({one.operation for _, one, _ in module.executed() if one.opcode == "fusion"})
    results["flops"], results["memory"] = compiled.flops, compiled.memory


def parameter_shapes(module):
    """Shapes of the program's arguments on one device, by number."""
    return {int(one.attributes[1:].split(")")[0]): list(one.results[0].shape)
            for one in module.computations[module.entry].values() if one.opcode == "parameter"}


def cut_shape(name, leaf):
    """A device's part by RULES, spelled out; moments lie as their parameters."""
    sizes = {"in": 2, "out": 2} if name.endswith("expand/kernel") or "expand/kernel" in name else {}
    return [size // sizes.get(axis, 1) for size, axis in zip(leaf.shape, leaf.axes, strict=True)]


def check_product(target, results):
    """A product of known size: the same arrays, cut over four devices."""
    runtime = TopologyRuntime(XlaSettings(), target)
    weights = runtime.place("w", Leaf((2048, 1024), dtype=torch.bfloat16, axes=("in", "out")), refuse)
    batch = runtime.put({"x": np.zeros((4096, 2048), np.float32)})

    def product(x, w):
        return (x.to(torch.bfloat16) @ w).float().sum()

    program = runtime.compile(product)
    try:
        runtime.fetch([program(batch["x"], weights)])
    except NothingComputedError:
        results["fetch is refused"] = True
    compiled = runtime.traced[0].compile(target, runtime.mesh_shape)
    module = Module(compiled.hlo)
    results["product flops"] = sum(module.flops(name, one) * times for name, one, times in module.executed())
    results["product arguments"] = compiled.memory["arguments"]
    results["collectives"] = [[one.kind, one.operand_bytes, one.groups.tolist()] for one in module.collectives()]


def check_gradients(target, results):
    """Gradients of a dense layer over four devices, by the dtypes of computation and of their sums over devices."""
    dense = Dense(256, 128)
    for dtype in (torch.bfloat16, torch.float32):
        for reduced in (None, "float32", "bfloat16"):
            runtime = TopologyRuntime(XlaSettings(gradient_dtype=reduced), target)
            params = {name: runtime.place(name, leaf, refuse) for name, leaf in spec(dense).items()}
            batch = runtime.put({"x": np.zeros((4096, 256), np.float32)})

            def step(params, batch, runtime=runtime, dtype=dtype):
                leaves = {name: array.detach().requires_grad_() for name, array in params.items()}
                out = apply(dense.forward, leaves, batch["x"], Context(runtime.kernels, dtype))
                return list(torch.autograd.grad(out.float().square().sum(), list(leaves.values())))

            runtime.compile(step)(params, batch)
            module = Module(runtime.traced[0].compile(target, runtime.mesh_shape).hlo)
            results[f"reduced {dtype} {reduced}"] = sum(
                one.operand_bytes for one in module.collectives() if one.kind == "all-reduce")


def check_too_large(target, results):
    """More than a chip has."""
    runtime = TopologyRuntime(XlaSettings(), target)
    a, b = (runtime.place(name, Leaf((65536, 131072), axes=("in", "out")), refuse) for name in "ab")
    runtime.compile(lambda a, b: a * 2 + b.flip(0))(a, b)
    try:
        runtime.traced[0].compile(target, runtime.mesh_shape)
    except tpu_compiler.OutOfMemoryError as error:
        buffers = [[one.size, one.shape, one.operation] for one in error.buffers]
        results["too large"] = [error.used, error.limit, buffers]


def main():
    """Does all checks."""
    results = {}
    target = tpu_compiler.describe_slice("v4:2x2x1")
    results["coordinates"], results["hosts"] = target.coordinates.tolist(), list(target.hosts)
    check_step(target, results)
    check_product(target, results)
    check_gradients(target, results)
    check_too_large(target, results)
    results["chips"] = {name: tpu_compiler.describe_slice(name).num_devices
                        for name in ("v4:4x4x8", "v5e:1x1", "v5e:4x8", "v5p:2x2x2", "v6e:8x8")}
    lock = Path("/tmp/libtpu_lockfile")
    locks = Path("/proc/locks").read_text().splitlines()
    inode = f":{lock.stat().st_ino} " if lock.exists() else "no file"
    results["locks"] = [line for line in locks if inode in line and f" {os.getpid()} " in line]
    Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
