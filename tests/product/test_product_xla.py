"""One pair a prior on eight virtual devices of XLA, beside the torch runtime."""
import json

import pytest

from tests.product.conftest import PRIORS
from tests.support.processes import printed, run_on_xla

pytest.importorskip("torch_xla")


@pytest.fixture(scope="module")
def results(tokenizer_run, tmp_path_factory):
    return printed(run_on_xla("tests.product.xla_pairs", tmp_path_factory.mktemp("xla"), tokenizer_run("MoVQ"),
                              num_devices=8, timeout=600))


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
