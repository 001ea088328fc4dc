"""Run by test_xla_metrics.py in a process of its own: a trace, and what is counted meanwhile.

    python -m tests.runtime.xla_profile directory

Prints JSON: the counters at several moments.
"""
import json
import sys

import numpy as np
import torch
from absl import logging

from vqim.runtime.settings import XlaSettings
from vqim.runtime.xla import XlaRuntime

NUM_STEPS = 4


def main():
    """Runs a program, traces it, and one with an operation that XLA does not have."""
    runtime, counters = XlaRuntime(XlaSettings()), {}

    def step(state, batch):
        state["sum"].add_(batch["x"].T @ batch["x"])
        return state["sum"].sum()

    batch = {"x": np.ones((16, 16), np.float32)}
    state = runtime.put({"sum": np.zeros((16, 16), np.float32)})
    program = runtime.compile(step)
    program(state, runtime.put(batch))
    counters["compiled"] = runtime.counters()
    with runtime.profile(sys.argv[1]):
        for _ in range(NUM_STEPS):
            program(state, runtime.put(batch))
    counters["traced"] = runtime.counters()
    logging.warning("two fallbacks follow")
    program = runtime.compile(lambda batch: torch.linalg.eigvals(batch["x"]).real)
    for _ in range(2):
        program(runtime.put(batch))
        counters["fallen back"] = runtime.counters()
    print(json.dumps(counters))


if __name__ == "__main__":
    main()
