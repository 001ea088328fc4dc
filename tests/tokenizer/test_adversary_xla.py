"""An adversarial run on eight XLA devices: one program for each name, and the torch runtime's losses."""
import pytest

from tests.support.processes import printed, run_on_xla

pytest.importorskip("torch_xla")
TOLERANCE = 3e-5
"""Of metrics, relative. Measured: 2.3e-6."""


@pytest.fixture(scope="module")
def results():
    return printed(run_on_xla("tests.tokenizer.xla_adversary", num_devices=8, timeout=600))


def test_each_program_is_compiled_once_when_it_is_first_needed(results):
    compiled = [(step["program"], step["compiled"]) for step in results["xla"]["steps"]]
    assert compiled == [
        ("train_before_adversary", 1), ("train_before_adversary", 0), ("train_with_r1", 1), ("train", 1), ("train", 0),
        ("train_with_r1", 0), ("train", 0), ("train", 0), ("train_with_r1", 0)]
    assert results["fallbacks"] == []


def test_metrics_are_those_of_the_torch_runtime(results):
    for step, (xla, expected) in enumerate(zip(results["xla"]["steps"], results["torch"]["steps"], strict=True)):
        assert xla["metrics"] == pytest.approx(expected["metrics"], rel=TOLERANCE, abs=1e-6), step


def test_before_its_start_the_discriminator_is_as_it_was_made(results):
    at_start = results["xla"]["at_start"]
    assert len(at_start) == results["xla"]["discriminator"] and at_start == results["torch"]["at_start"]


def test_each_program_updates_in_place_what_it_changes_and_no_more(results):
    updated = {step["program"]: step["updated"] for step in results["xla"]["steps"] if step["compiled"]}
    everything, discriminator = results["xla"]["state"], results["xla"]["discriminator"]
    assert updated == {"train_before_adversary": everything - discriminator, "train_with_r1": everything,
                       "train": everything}
