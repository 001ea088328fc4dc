"""A second phase by gin alone: a run that starts from another one and trains a part of it."""
import shutil

import numpy as np
from PIL import Image

import vqim
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


def test_drawn_tokens_are_shown_by_both_decoders_side_by_side(verbs, runs):
    done = verbs("train", *train_flags(TOKENIZER, "second", *SECOND_PHASE, "optim.WarmupCosine.peak = 0.1"))
    assert done.code == 0, done.err
    flags = (f"--workdir={runs / 'prior'}", "--num_images=3", "--seed=5", "--batch_size=2")
    for out, more in (("own", ()), ("other", ("--tokenizer_run=second",))):
        done = verbs("sample", *flags, f"--out={out}", *more)
        assert done.code == 0, done.err
    own, other = ([np.asarray(Image.open(path)) for path in sorted((verbs.directory / out).glob("0*.png"))]
                  for out in ("own", "other"))
    second, prior = vqim.load(str(verbs.directory / "second")), vqim.load(str(runs / "prior"))
    tokens = prior.sample_tokens([0, 1, 2], seed=5)
    assert np.array_equal(own, prior.images(tokens)) and np.array_equal(other, second.images(tokens))
    assert not np.array_equal(own, other)
    assert not (verbs.directory / "own/compare.png").exists()
    compared = np.asarray(Image.open(verbs.directory / "other/compare.png"))
    for number in range(3):
        left = 18 * number  # 16 pixels and 2 in between
        assert np.array_equal(compared[:16, left:left + 16], own[number])
        assert np.array_equal(compared[16:32, left:left + 16], other[number])


def test_a_second_phase_leaves_the_tokens_of_images_as_they_are(verbs, runs):
    done = verbs("train", *train_flags(TOKENIZER, "second", *SECOND_PHASE))
    assert done.code == 0, done.err
    first, second = (vqim.load(str(run)) for run in (runs / "tokenizer", verbs.directory / "second"))
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    tokens = first.tokens(images)
    assert len(np.unique(tokens)) > 3 and np.array_equal(tokens, second.tokens(images))


def test_a_decoder_for_other_tokens_is_refused_with_the_arrays_that_differ(verbs, runs):
    done = verbs("train", *train_flags(TOKENIZER, "other", "train.num_steps = 1", "train.seed = 1",
                                       "train.evaluators = []"))
    assert done.code == 0, done.err
    done = verbs("sample", f"--workdir={runs / 'prior'}", "--num_images=2", "--tokenizer_run=other")
    assert (done.code, done.out) == (2, "")
    assert "tokenizer_run must make the same tokens as the prior's own tokenizer; they differ in encoder/" in done.err
