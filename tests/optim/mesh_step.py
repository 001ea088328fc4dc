"""Run by test_mesh.py in a process of its own: Adafactor's int8 steps on one mesh, and its state through checkpoints.

    python mesh_step.py fsdp tensor workdir [checkpoints to read]

Makes some updates, keeps the arrays in `workdir` as arrays.npz and as a checkpoint; then reads another run's
checkpoint and keeps what has come back as restored.npz.
"""
import pathlib
import sys

import numpy as np

from vqim.checkpoint.manager import CheckpointManager
from vqim.optim.adafactor import Adafactor
from vqim.runtime.settings import XlaSettings
from vqim.state.init import Normal
from vqim.state.leaf import Leaf, Spec, prefixed
from vqim.training.state import TrainState, restore_arrays, save, start

PARAMS: Spec = {
    "kernel": Leaf((3, 128, 384), Normal(), ("layers", "in", "out")),
    "table": Leaf((256, 128), Normal(), ("vocabulary", "features")),
    "bias": Leaf((3, 384), Normal(), ("layers", "features")),
}
RULES = [("kernel", {"in": "fsdp", "out": "tensor"}), ("table", {"features": "fsdp"}), ("bias", {"features": "tensor"})]
STEPS = 5


def make_optimizer() -> Adafactor:
    return Adafactor(min_factored_size=64, weight_decay=0.1)


def state_spec() -> Spec:
    return {**prefixed("params/net/", PARAMS), **prefixed("optimizer/net/", make_optimizer().init_spec(PARAMS))}


def gradient(name: str, step: int) -> np.ndarray:
    """Gaussian gradients whose size changes from step to step and from row to row."""
    generator = np.random.default_rng([step, len(name)])
    shape = PARAMS[name].shape
    rows = np.exp(generator.standard_normal((*shape[:-1], 1)))
    return (10.0 ** (step % 3 - 2) * rows * generator.standard_normal(shape)).astype(np.float32)


def whole(runtime, arrays):
    """Every array of the state, put together from its shards."""
    results = {}
    for name, array in arrays.items():
        shards = runtime.shards(array)
        results[name] = np.zeros(shards.shape, shards.dtype)
        for index, part in shards.parts:
            results[name][index] = part
    return results


def main() -> None:
    from vqim.runtime.xla import XlaRuntime  # torch_xla may not be installed where the test reads the specs

    fsdp, tensor, workdir, *others = sys.argv[1:]
    runtime = XlaRuntime(XlaSettings(fsdp=int(fsdp), tensor=int(tensor), rules=RULES))
    optimizer, spec = make_optimizer(), state_spec()
    optimizer.init_spec(PARAMS)
    arrays = start(spec, 0, runtime).arrays

    def update(arrays, grads, scalars):
        of = lambda prefix: {n[len(prefix):]: a for n, a in arrays.items() if n.startswith(prefix)}  # noqa: E731
        return optimizer.update(
            of("params/net/"), grads, of("optimizer/net/"), learning_rate=scalars["learning_rate"],
            step=scalars["step"], keep=scalars["learning_rate"] > 0)["update_norm"]

    program = runtime.compile(update)
    for step in range(STEPS):
        grads = {name: runtime.place(name, leaf, lambda index, name=name: gradient(name, step)[index])  # noqa: B023
                 for name, leaf in PARAMS.items()}
        program(arrays, grads, runtime.scalars({"learning_rate": 1e-2, "step": step}))
    pathlib.Path(workdir).mkdir(parents=True)
    np.savez(f"{workdir}/arrays.npz", **whole(runtime, arrays))
    manager = CheckpointManager(f"{workdir}/checkpoints")
    save(TrainState(arrays, STEPS, 0), spec, manager, runtime, data_position={}, config="", metrics={})
    manager.wait()
    for other in others:
        restored = restore_arrays(spec, 0, runtime, CheckpointManager(other).open())
        np.savez(f"{workdir}/restored.npz", **whole(runtime, restored))


if __name__ == "__main__":
    main()
