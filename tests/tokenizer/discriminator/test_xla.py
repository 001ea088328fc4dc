import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch_xla")
SCRIPT = pathlib.Path(__file__).with_name("xla_step.py")
NAMES = ["stylegan2, few channels", "stylegan2, many channels", "patchgan"]


@pytest.fixture(scope="module")
def results():
    environment = os.environ | {
        "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "1", "PYTHONPATH": str(SCRIPT.parents[3]),
        "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_logits_gradients_and_r1_on_xla_equal_those_on_torch(results, name):
    far = {array: gap for array, gap in results[name]["differences"].items() if not gap <= 1e-4}
    assert far == {}


@pytest.mark.parametrize("name", NAMES)
def test_no_operation_of_a_discriminator_falls_back_to_the_cpu(results, name):
    assert results[name]["aten"] == []
