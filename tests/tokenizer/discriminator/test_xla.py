import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch_xla")
ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def results():
    environment = os.environ | {
        "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "4", "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = subprocess.run(
        [sys.executable, "-m", "tests.tokenizer.discriminator.xla_step"], cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["stylegan2", "patchgan"])
def test_logits_gradients_and_r1_on_four_devices_equal_those_on_torch(results, name):
    assert results["mesh"] == [4, 1, 1]
    far = {array: gap for array, gap in results["differences"][name].items() if not gap <= 1e-4}
    assert far == {}


def test_no_operation_of_a_discriminator_falls_back_to_the_cpu(results):
    assert results["fallbacks"] == []
