"""Levels of tokens and drawn codes on XLA: one program whatever the temperature, and the torch runtime's codes."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch_xla")
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results():
    environment = os.environ | {
        "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "1", "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = subprocess.run(
        [sys.executable, "-m", "tests.tokenizer.xla_levels"], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=600)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_codes_and_what_the_decoder_makes_of_them_are_those_of_the_torch_runtime(results):
    xla, expected = results["xla"], results["torch"]
    assert xla["top"] == expected["top"] and len(set(xla["top"])) > 1
    assert xla["bottom"] == expected["bottom"] and len(set(xla["bottom"])) > 1
    assert xla["locations"] == pytest.approx(expected["locations"], rel=1e-4, abs=1e-4)


def test_training_is_one_program_at_every_temperature_that_nothing_falls_out_of(results):
    assert results["xla"]["compiled"] == [1, 0, 0, 0]
    assert results["fallbacks"] == []


def test_training_lowers_the_loss(results):
    for runtime in ("torch", "xla"):
        assert results[runtime]["losses"][-1] < results[runtime]["losses"][0]
