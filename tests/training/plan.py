"""Run by tests in a process of its own: several pieces of work on one runtime, whose programs compile once.

    python -m tests.training.plan torch|xla plan.json

plan.json: {"files": [gin files], "settings": [bindings of the runtime], "work": [piece ...], "results": path}.
A piece trains:
    {"gin": file, "bindings": [...], "workdir": path}
or, with "restore": true, reads the newest checkpoint in workdir onto the devices. More may be asked of a piece:
    "signal": [step, name]: the process sends itself a signal after that step.
    "arrays": path: the state at the end is written to this .npz file, gathered from the devices by XLA itself.
The result of a piece is what torch_xla counted meanwhile: programs compiled, arrays that these update in place,
operations that fell back to the CPU.
"""
import dataclasses
import json
import os
import pathlib
import signal
import sys

import numpy as np

import vqim.registry.components  # noqa: F401  gin knows the components from here on
from vqim.checkpoint.manager import CheckpointManager
from vqim.registry.config import load
from vqim.registry.runtimes import make_runtime
from vqim.runtime.arrays import to_numpy
from vqim.training.loop import train
from vqim.training.state import restore_arrays


class Send:
    """An evaluator that measures nothing, and sends this process a signal after a step."""

    def __init__(self, step, name):
        self.every, self._number = step, getattr(signal, name)

    def begin(self, task, data, state, runtime):
        return self

    def __iter__(self):
        os.kill(os.getpid(), self._number)
        yield

    def result(self):
        return {}


def counters():
    """(compilations, arrays that compiled programs update in place, names of operations outside of programs)."""
    if "torch_xla" not in sys.modules:
        return 0, 0, []
    import torch_xla.debug.metrics as metrics
    aliases = metrics.metric_data("InputOutputAliasCount")
    fallbacks = [name for name in metrics.counter_names() if name.startswith("aten::")]
    return metrics.counter_value("UncachedCompile") or 0, int(aliases[1]) if aliases else 0, fallbacks


def do(piece, config, runtime):
    """Does one piece of work; returns its result."""
    compiled, updated, _ = counters()
    experiment = config.call("train")
    if piece.get("restore"):
        checkpoint = CheckpointManager(f"{piece['workdir']}/checkpoints").open()
        arrays = restore_arrays(experiment.task.init_spec(), experiment.seed, runtime, checkpoint)
    else:
        if "signal" in piece:
            experiment = dataclasses.replace(experiment, evaluators=[Send(*piece["signal"])])
        finished = train(experiment, workdir=piece["workdir"], runtime=runtime, config=config.text())
        arrays = finished.state.arrays
    now_compiled, now_updated, fallbacks = counters()
    if "arrays" in piece:
        np.savez(piece["arrays"], **{name: to_numpy(array) for name, array in arrays.items()})
    return {"compiled": now_compiled - compiled, "updated": now_updated - updated, "fallbacks": fallbacks}


def main():
    """Does all pieces."""
    runtime_name, path = sys.argv[1:]
    plan = json.loads(pathlib.Path(path).read_text())
    runtime, results = None, []
    for piece in plan["work"]:
        config = load([piece["gin"], *plan["files"]], [*piece["bindings"], *plan["settings"]], [])
        runtime = runtime or make_runtime(config, runtime_name)
        results.append(do(piece, config, runtime))
    pathlib.Path(plan["results"]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
