"""A second phase by gin alone: a run that starts from another one and trains a part of it."""
import shutil

import numpy as np

from tests.launch.verbs import train_flags
from vqim.checkpoint.manager import CheckpointManager

TOKENIZER = "gin/debug/tokenizer_tiny.gin"
SECOND_PHASE = ("train.start_from = [@training.StartFrom()]", "training.StartFrom.run = 'runs/debug/tokenizer'",
                "training.Learner.trains = 'decoder/.*'", "train.num_steps = 5", "train.evaluators = []")


def test_a_second_phase_trains_the_decoder_of_a_finished_run_and_goes_on_without_it(verbs, runs, arrays):
    before, _ = arrays(runs / "tokenizer")
    done = verbs("train", *train_flags(TOKENIZER, "second", *SECOND_PHASE))
    assert done.code == 0, done.err
    assert "Starting from step 40 of runs/debug/tokenizer: " in done.err
    after, _ = arrays(verbs.directory / "second")
    params = {name for name in before if name.startswith("params/")}
    assert {name for name in params if not np.array_equal(after[name], before[name])} == {
        name for name in params if name.startswith("params/tokenizer/decoder/")}

    shutil.rmtree(runs)
    done = verbs("train", *train_flags(TOKENIZER, "second", *SECOND_PHASE, "train.num_steps = 6"))
    assert done.code == 0, done.err
    (origin,) = CheckpointManager(verbs.directory / "second/checkpoints").open(6).metadata["origins"]
    assert origin == {"run": "runs/debug/tokenizer", "step": 40, "arrays": len(params)}


def test_a_run_that_does_not_fit_is_refused_with_the_names(verbs, runs):
    done = verbs("train", *train_flags(TOKENIZER, "second", *SECOND_PHASE, "VOCABULARY = 32"))
    assert done.code == 2
    assert "Traceback" not in done.err
    assert ("train.start_from does not fit:\n  runs/debug/tokenizer: params/tokenizer/quantizer/codebook_VZ -> "
            "params/tokenizer/quantizer/codebook_VZ: expected float32 [32, 4], it has float32 [64, 4]; name it in "
            "`left`, and here in `fresh`, to keep its initial values") in done.err
