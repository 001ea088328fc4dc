"""Levels of tokens and drawn codes on XLA: one program whatever the temperature, and the torch runtime's codes."""
import pytest

from tests.support.processes import printed, run_on_xla

pytest.importorskip("torch_xla")


@pytest.fixture(scope="module")
def results():
    return printed(run_on_xla("tests.tokenizer.xla_levels", timeout=600))


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
