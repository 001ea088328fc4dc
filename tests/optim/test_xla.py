import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch_xla")
SCRIPT = pathlib.Path(__file__).with_name("xla_step.py")
KINDS = ["adamw", "int8", "stochastic", "bfloat16"]


@pytest.fixture(scope="module")
def results():
    environment = os.environ | {
        "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    process = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_xla_is_one_program_that_nothing_falls_out_of(results, kind):
    assert results[kind]["aten"] == [] and results[kind]["reads"] == 0
    first, *later = results[kind]["compiled"]
    assert later == [first] * 5  # neither the step, the rate nor keep is part of the program


@pytest.mark.parametrize("kind", KINDS)
def test_steps_on_xla_equal_those_on_torch(results, kind):
    # a stochastic rounding that falls the other way moves a weight by a level of its momentum, 1/127 of the largest
    tolerance = 1e-3 if kind == "stochastic" else 1e-4
    for name, gap in results[kind]["differences"].items():
        if gap["int8"]:
            assert gap["levels"] <= 1 and gap["moved"] <= 1e-3, name
        elif kind == "bfloat16" and name.startswith("m/"):
            assert gap["relative"] <= 2**-7, name
        else:
            assert gap["relative"] <= tolerance, name
