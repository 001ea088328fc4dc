"""Run by test_xla.py in a process of its own: what the XLA runtime does with arrays, on one mesh.

    python xla_checks.py fsdp tensor results.npz

Writes arrays by name; the tests know what they should be.
"""
import sys

import numpy as np
import torch
import torch_xla
import torch_xla.debug.metrics as metrics

from vqim.runtime.arrays import to_numpy
from vqim.runtime.settings import XlaSettings
from vqim.runtime.xla import XlaRuntime
from vqim.state.leaf import Leaf

RULES = [("in_and_out", {"in": "fsdp", "out": "tensor"}), ("only_in", {"in": "fsdp"})]
LEAVES = {
    "in_and_out": Leaf((3, 4, 6), axes=("layers", "in", "out")),
    "only_in": Leaf((4, 6), axes=("in", "out"), dtype=torch.int8),
    "whole": Leaf((5,), axes=("features",), dtype=torch.bfloat16),
    "scalar": Leaf((), dtype=torch.int32),
    "bool": Leaf((2,), axes=("checked",), dtype=torch.bool),
}
BITS_SHAPE = (8, 64, 40)


def values(leaf):
    """0, 1, 2 ..., as the leaf has them."""
    return np.arange(leaf.size).reshape(leaf.shape).astype(to_numpy(torch.empty(0, dtype=leaf.dtype)).dtype)


def compiled():
    """Number of compilations so far."""
    data = metrics.metric_data("CompileTime")
    return data[0] if data else 0


def covered(shards):
    """The array that shards describe, and how often they give each of its elements."""
    array, times = np.zeros(shards.shape, shards.dtype), np.zeros(shards.shape, int)
    for index, part in shards.parts:
        array[index] = part
        times[index] += 1
    return array, times


def check_state(runtime, results):
    """Placing, updating in place, and reading back."""
    state, asked = {}, {}
    for name, leaf in LEAVES.items():
        def fill(index, name=name, leaf=leaf):
            asked.setdefault(name, []).append(index)
            return values(leaf)[index]

        state[name] = runtime.place(name, leaf, fill)
        results[f"times filled {name}"] = len(asked[name])
    before = {name: runtime.shards(array) for name, array in state.items()}

    def update(arrays, scalars):
        for name in ("in_and_out", "only_in", "whole", "scalar"):
            arrays[name].add_(scalars["one"].to(arrays[name].dtype))
        return arrays["scalar"] * 10

    program, counts, returned = runtime.compile(update), [], []
    pending = []
    for step in range(4):
        # Something else that is alive and not computed yet is no business of the program.
        pending.append(torch.ones(step + 1, device=runtime.device) * 3)
        returned += runtime.fetch([program(state, runtime.scalars({"one": 1}))])
        counts.append(compiled())
    results["compilations"], results["returned"] = counts, returned
    for name, array in state.items():
        results[f"before {name}"], results[f"times before {name}"] = covered(before[name])
        results[f"after {name}"], results[f"times after {name}"] = covered(runtime.shards(array))
        results[f"parts {name}"] = len(before[name].parts)
        results[f"parts after {name}"] = len(runtime.shards(array).parts)
    results["updated in place"] = metrics.metric_data("InputOutputAliasCount")[1]


def check_scalars(runtime, results):
    """Numbers that are 0, 1, equal, or equal to a number of the program."""
    program = runtime.compile(lambda scalars: scalars["a"] * 0.25 + 3 + scalars["b"])
    got, counts = [], []
    for a, b in [(0.0, 0), (1.0, 1), (2.0, 2), (0.25, 3), (3.0, 3), (0.5, -1)]:
        got += runtime.fetch([program(runtime.scalars({"a": a, "b": b}))])
        counts.append(compiled())
    results["scalars"], results["scalar compilations"] = got, counts


def check_batches(runtime, results):
    """Batches cut over devices; results whole, and fetched without a program; arrays cut along another dimension."""
    batch = {
        "images": np.arange(8 * 6, dtype=np.uint8).reshape(8, 2, 3), "labels": np.arange(8, dtype=np.int32),
        "valid": np.arange(8) % 3 == 0, "tokens": np.arange(16).reshape(8, 2)}
    program = runtime.compile(lambda batch: {**batch, "sum": batch["images"].float().sum()})
    out = program(runtime.put(batch))
    before = compiled()
    for name, array in zip(out, runtime.fetch(list(out.values())), strict=True):
        results[f"batch {name}"] = array
    results["compilations by fetch"] = compiled() - before
    (cut,) = runtime.cut([torch.zeros(3, 8, 2, device=runtime.device)], axis=1)
    results["cut"], results["times cut"] = covered(runtime.shards(cut))
    results["parts cut"] = len(runtime.shards(cut).parts)


def check_bits(runtime, results):
    """Random draws under the key of a step, spread over the devices like the batch that they belong to."""
    def draw(batch, scalars):
        shape = batch["x"].shape
        return {
            "uniform": batch["x"] + runtime.kernels.uniform(scalars["key"], shape, runtime.device),
            "keep": batch["x"] + runtime.kernels.keep_mask(scalars["key"], 0.3, shape, runtime.device).float()}

    program = runtime.compile(draw)
    for key in (0, 1, -7):
        out = program(runtime.put({"x": np.zeros(BITS_SHAPE, np.float32)}), runtime.scalars({"key": key}))
        for name, array in out.items():
            results[f"{name} {key}"] = runtime.fetch([array])[0]
    with torch.no_grad():
        key = runtime.scalars({"key": 5})["key"]
        results["uniform scalar"] = runtime.fetch([runtime.kernels.uniform(key, (), runtime.device)])[0]


def check_order(results):
    """Devices that take other places on the mesh, as those of two hosts of a torus do."""
    class TwoHosts(XlaRuntime):
        def _device_order(self):
            return [0, 1, 4, 5, 2, 3, 6, 7]

    other = TwoHosts(XlaSettings(fsdp=2, tensor=2, rules=RULES))
    rows = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
    batch = other.put({"rows": rows})
    results["rows of two hosts"] = other.fetch([other.compile(lambda batch: batch["rows"] * 1)(batch)])[0]
    results["shards of two hosts"], results["times of two hosts"] = covered(other.shards(batch["rows"]))
    leaf = LEAVES["in_and_out"]
    placed = other.place("in_and_out", leaf, lambda index: values(leaf)[index])
    results["placed on two hosts"], _ = covered(other.shards(placed))


def check_refusals(runtime, results):
    """What the runtime refuses on eight devices."""
    for name, attempt in {
        "refused batch": lambda: runtime.put({"x": np.zeros((6, 2), np.float32)}),
        "refused mesh": lambda: XlaRuntime(XlaSettings(fsdp=3)),
        "refused leaf": lambda: runtime.place("only_in", Leaf((3, 6), axes=("in", "out")), lambda index: None),
    }.items():
        try:
            attempt()
        except ValueError as error:
            results[name] = str(error)


def main():
    """Does all checks."""
    fsdp, tensor, path = sys.argv[1:]
    runtime = XlaRuntime(XlaSettings(fsdp=int(fsdp), tensor=int(tensor), rules=RULES))
    results = {"mesh": list(runtime.mesh_shape.values()), "num_batch_shards": runtime.num_batch_shards}
    check_state(runtime, results)
    check_scalars(runtime, results)
    check_batches(runtime, results)
    check_bits(runtime, results)
    if runtime.num_batch_shards > 1:
        check_refusals(runtime, results)
        check_order(results)
    assert runtime.describe()["torch_xla"] == torch_xla.__version__
    np.savez(path, **{name: np.asarray(value).view(np.uint16) if getattr(value, "dtype", None) == "bfloat16"
                      else np.asarray(value) for name, value in results.items()})


if __name__ == "__main__":
    main()
