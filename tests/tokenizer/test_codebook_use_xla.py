"""The entropy of a batch's use and k-means do not depend on the number of devices, and stay on them."""
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch_xla")
ROOT = pathlib.Path(__file__).parents[2]


def run(num_devices):
    environment = os.environ | {
        "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(num_devices), "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = subprocess.run(
        [sys.executable, "-m", "tests.tokenizer.xla_codebook_use"], cwd=ROOT, env=environment, capture_output=True,
        text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def results():
    return run(1), run(8)


def test_eight_devices_have_the_entropy_and_the_codebook_of_one(results):
    one, eight = results
    assert (one["num_devices"], eight["num_devices"]) == (1, 8)
    for ours, theirs in zip(eight["losses"], one["losses"], strict=True):
        assert theirs["loss/entropy"] > 1e-4
        assert ours["loss/entropy"] == pytest.approx(theirs["loss/entropy"], rel=1e-3)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    np.testing.assert_allclose(eight["codebook"], one["codebook"], rtol=1e-3, atol=1e-3)


def test_nothing_leaves_the_device(results):
    assert results[0]["fallbacks"] == results[1]["fallbacks"] == []
