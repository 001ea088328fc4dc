"""Convolutional networks on XLA: nothing leaves the device, and they compute what the torch runtime computes."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch_xla")
SCRIPT = pathlib.Path(__file__).with_name("xla_cnn.py")


@pytest.fixture(scope="module")
def results():
    environment = os.environ | {
        "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "1", "PYTHONPATH": str(SCRIPT.parents[2]),
        "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["cnn", "dvae"])
def test_no_operation_of_a_network_or_its_gradient_falls_back_to_the_host(results, name):
    assert results[name]["aten"] == []


@pytest.mark.parametrize("name", ["cnn", "dvae"])
def test_images_and_gradients_are_those_of_the_torch_runtime(results, name):
    assert len(results[name]["gaps"]) > 30
    assert {path: gap for path, gap in results[name]["gaps"].items() if not gap < 1e-4} == {}
