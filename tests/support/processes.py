"""Programs of tests in processes of their own: the number of virtual XLA devices is that of a process."""
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
"""The checkout."""

UNOPTIMISED = "--xla_backend_optimization_level=0"
"""XLA's CPU compiler without optimisation takes half as long."""


def xla_environment(num_devices, flags=UNOPTIMISED):
    """The environment of a process for which the CPU is so many XLA devices; without `flags`, XLA's own defaults."""
    environment = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(num_devices), "OMP_NUM_THREADS": "1"}
    return os.environ | environment | ({"XLA_FLAGS": flags} if flags else {})


def run_on_xla(module, *arguments, num_devices=1, flags=UNOPTIMISED, returncode=0, timeout=300):
    """Runs `python -m module arguments...` with so many XLA devices; returns the finished process.

    Raises:
      AssertionError: the process ended with another code; the message is what it wrote to stderr.
    """
    process = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, env=xla_environment(num_devices, flags),
        capture_output=True, text=True, timeout=timeout)
    assert process.returncode == returncode, process.stderr
    return process


def arrays_on_one_and_eight(module, directory):
    """By the number of devices, 1 and 8, the arrays that `python -m module FILE.npz` wrote into its file."""
    found = {}
    for count in (8, 1):
        path = directory / f"{count}.npz"
        run_on_xla(module, path, num_devices=count, timeout=900)
        found[count] = dict(np.load(path))
    return found


def printed(process):
    """The JSON that a process printed last."""
    return json.loads(process.stdout.splitlines()[-1])
