"""One pair a prior on eight virtual devices of XLA, beside the torch runtime."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.product.conftest import PRIORS

pytest.importorskip("torch_xla")
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tokenizer_run, tmp_path_factory):
    environment = {**os.environ, "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "8", "OMP_NUM_THREADS": "1",
                   "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.product.xla_pairs", str(tmp_path_factory.mktemp("xla")),
         str(tokenizer_run("MoVQ"))], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("prior", PRIORS)
def test_guided_tokens_and_their_images_are_those_of_the_torch_runtime(results, prior):
    xla, expected = results[prior]["xla"], results[prior]["torch"]
    assert xla["tokens"] == expected["tokens"]
    assert len({json.dumps(image) for image in xla["tokens"]}) == 8
    assert xla["means"] == pytest.approx(expected["means"], abs=1e-5)


@pytest.mark.parametrize("prior", ["autoregressive", "RQ-transformer"])  # masks are drawn from each runtime's own bits
def test_losses_of_two_steps_are_those_of_the_torch_runtime(results, prior):
    losses = {runtime: results[prior][runtime]["losses"] for runtime in ("xla", "torch")}
    assert losses["xla"] == pytest.approx(losses["torch"], rel=1e-4)
    assert losses["torch"][0] != losses["torch"][1]


@pytest.mark.parametrize("prior", PRIORS)
def test_every_draw_and_every_step_is_one_program(results, prior):
    draws, steps = results[prior]["xla"]["compiled"][:2], results[prior]["xla"]["compiled"][2:]
    assert draws[1] == 0 and steps == [1, 0]
    assert results["fallbacks"] == []
