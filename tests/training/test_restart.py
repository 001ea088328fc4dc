"""A run on the torch runtime that was interrupted, at whatever step and however, ends like one that was not."""
import signal

import numpy as np
import pytest

NUM_STEPS = 16
STEPS = [f"NUM_STEPS = {NUM_STEPS}", "train.log_every = 1", "train.save_every = 5", "train.evaluators = []"]
STAGES = ("tokenizer", "prior")


@pytest.fixture(scope="module")
def runs(plans):
    """Finished runs `<stage>/<how>` of both stages, and the directory that they are in."""
    def piece(stage, how, **more):
        directory = plans.directory
        bindings = [*STEPS, f"TOKENIZER_RUN = '{directory / 'tokenizer/whole'}'"] if stage == "prior" else STEPS
        return {"gin": f"gin/debug/{stage}_tiny.gin", "bindings": bindings,
                "workdir": str(directory / stage / how), **more}

    # A signal after the first step; after one that saves anyway; after two steps in a row; before the last.
    signals = [(1, "SIGTERM"), (5, "SIGINT"), (9, "SIGTERM"), (10, "SIGTERM"), (15, "SIGINT")]
    plans.run("torch", [piece(stage, "whole") for stage in STAGES] + [
        piece(stage, "stopped", **how) for stage in STAGES for how in (*({"signal": [*at]} for at in signals), {})])
    for stage, step in (("tokenizer", 8), ("prior", 11)):
        plans.run("torch", [piece(stage, "killed", signal=[step, "SIGKILL"])], returncode=-signal.SIGKILL)
    plans.run("torch", [piece(stage, "killed") for stage in STAGES])
    return plans


@pytest.mark.parametrize("how", ["stopped", "killed"])
@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_run_ends_bit_for_bit_with_the_state_of_an_uninterrupted_one(runs, stage, how):
    expected, _ = runs.checkpoint(f"{stage}/whole", NUM_STEPS)
    arrays, _ = runs.checkpoint(f"{stage}/{how}", NUM_STEPS)
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in expected.items()}


@pytest.mark.parametrize("how", ["stopped", "killed"])
@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_run_sees_the_data_in_the_same_order(runs, stage, how):
    assert runs.checkpoint(f"{stage}/{how}")[1] == runs.checkpoint(f"{stage}/whole")[1]
    losses = runs.losses(f"{stage}/{how}")
    assert sorted(losses) == list(range(1, NUM_STEPS + 1))
    assert losses == runs.losses(f"{stage}/whole")


def test_training_changes_the_state_between_the_checkpoints_compared(runs):
    first, _ = runs.checkpoint("prior/whole", 15)
    last, _ = runs.checkpoint("prior/whole", NUM_STEPS)
    changed = {name for name in first if not np.array_equal(first[name], last[name])}
    assert {name for name in first if name.startswith(("params/", "optimizer/"))} == changed
