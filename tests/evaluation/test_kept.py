"""Evaluations that are kept on disk: what is gone on with is equal to a bit, and only what belongs to it is taken."""
import numpy as np
import pytest
import torch

from vqim.contracts.evaluation import About, Items
from vqim.evaluation.distances import Averages
from vqim.evaluation.extractors import Extracted
from vqim.evaluation.image_metrics import Distances, ShownImages
from vqim.evaluation.kept import Kept
from vqim.evaluation.passes import Predictions, Reconstructions, evaluate
from vqim.evaluation.rejection import Acceptance, Rejection
from vqim.evaluation.samples import Samples
from vqim.evaluation.set_metrics import FeatureDistances, WaveletDistance
from vqim.evaluation.token_metrics import CodebookUse, Likelihood
from vqim.runtime.hosts import OneHost
from vqim.runtime.torch import TorchRuntime

RUNTIME = TorchRuntime()
ABOUT = {"checkpoint": "step 40", "configuration": "abc"}


class Pixels:
    """An extractor without a network, which has all that Inception has: a few sums of pixels."""

    frozen = {}
    names = {name: f"pixel_{name}" for name in ("fid", "sfid", "inception_score", "kid", "precision", "recall",
                                                "density", "coverage")}

    def __call__(self, frozen, images_BCHW, context):
        rows = images_BCHW.mean(3).flatten(1)
        return Extracted(rows[:, :12], rows[:, 12:24], 9 * rows[:, 24:30])

    def describe(self):
        return {"extractor": "pixels", "weights": "none"}


class BrightnessJudge:
    """A classifier of three classes by brightness."""

    num_classes, image_size = 3, 16

    def init_spec(self):
        return {}

    def __call__(self, arrays, images_BCHW, *, context):
        bright_B = images_BCHW.mean((1, 2, 3))
        return torch.stack([bright_B, 0.5 - bright_B, bright_B.square()], 1) * 9


@pytest.fixture
def kept(tmp_path):
    """`kept(**other words)`: a file that is written after every batch."""
    return lambda **words: Kept(tmp_path / "kept/0.npz", {**ABOUT, **words}, OneHost(), 0)


def begin(evaluator, run, data):
    task, state = run
    return evaluator.begin(task, data, state, RUNTIME)


def broken_off(evaluator, run, data, kept, after):
    """An evaluation that was killed after some batches, and gone on with by another process."""
    first = begin(evaluator, run, data)
    for number, _ in enumerate(first, start=1):
        kept().after_batch(first)
        if number == after:
            break
    again = begin(evaluator, run, data)
    kept().resume(again)
    assert again.num_done == after
    data.num_batches = 0
    return again


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(found[name], value)
        elif hasattr(value, "values"):
            np.testing.assert_array_equal(found[name].values, value.values)
        else:
            assert found[name] == value, name


def test_reconstructions_that_go_on_are_equal_to_unbroken_ones(tokenizer_run, data, kept):
    run = tokenizer_run()

    def evaluator():  # as each process makes one; one that has measured before knows for how long codes are unused
        return Reconstructions([Distances(), CodebookUse(), ShownImages(5), WaveletDistance(),
                                FeatureDistances(Pixels())], batch_size=64)

    expected, unbroken = evaluate(begin(evaluator(), run, data)), begin(evaluator(), run, data)
    for after in (1, 4):
        again = broken_off(evaluator(), run, data, kept, after)
        assert_same(evaluate(again), expected)
        assert data.num_batches == 5 - after  # those before are not read again
    evaluate(unbroken)
    np.testing.assert_array_equal(again.checksums(), unbroken.checksums())
    np.testing.assert_array_equal(again.values()["evaluation/psnr"], unbroken.values()["evaluation/psnr"])


def test_predictions_of_two_levels_that_go_on_are_equal_to_unbroken_ones(prior_run, data, kept):
    run, evaluator = prior_run(sizes=(20, 30)), Predictions([Likelihood(), CodebookUse()], batch_size=128)
    assert_same(evaluate(broken_off(evaluator, run, data, kept, 2)), evaluate(begin(evaluator, run, data)))


@pytest.mark.parametrize("num_images, reference, rate, after", [
    (20, "train", 1.0, 1), (4, "validation", 1.0, 2), (14, None, 0.4, 1),
], ids=["drawing", "all drawn", "accepted by a classifier"])
def test_samples_that_go_on_are_equal_to_unbroken_ones(prior_run, data, kept, num_images, reference, rate, after):
    metrics = [ShownImages(4), Rejection(BrightnessJudge(), rates=(1.0, 0.5))] + [WaveletDistance()] * bool(reference)
    evaluator = Samples(metrics, num_images, 30, reference_split=reference,
                        acceptance=Acceptance(BrightnessJudge(), rate))
    run = prior_run()
    assert_same(evaluate(broken_off(evaluator, run, data, kept, after)), evaluate(begin(evaluator, run, data)))


def test_a_finished_evaluation_is_not_run_again(tokenizer_run, data, kept):
    run, evaluator = tokenizer_run(), Reconstructions([Distances()], batch_size=100)
    expected = evaluate(begin(evaluator, run, data))
    assert_same(evaluate(broken_off(evaluator, run, data, kept, 3)), expected)
    assert data.num_batches == 0


@pytest.mark.parametrize("name", ["checkpoint", "configuration"])
def test_what_was_kept_of_another_evaluation_is_not_taken(tokenizer_run, data, kept, name):
    run, evaluator = tokenizer_run(), Reconstructions([Distances()], batch_size=100)
    broken_off(evaluator, run, data, kept, 2)
    other = begin(evaluator, run, data)
    kept(**{name: "another"}).resume(other)
    assert other.num_done == 0


def test_a_damaged_file_begins_anew(tokenizer_run, data, kept, tmp_path):
    run, evaluator = tokenizer_run(), Reconstructions([Distances()], batch_size=100)
    broken_off(evaluator, run, data, kept, 2)
    path = tmp_path / "kept/0.npz"
    whole = path.read_bytes()
    for damaged in (whole[:len(whole) // 2], b"", whole[:700] + bytes([whole[700] ^ 255]) + whole[701:]):
        path.write_bytes(damaged)
        other = begin(evaluator, run, data)
        kept().resume(other)
        assert other.num_done == 0


class Unkept:
    """A metric of somebody else, whose tally has no state."""

    needs, frozen = ("images_BCHW",), {}

    def observe(self, items: Items, frozen, context):
        return {"brightness": items.images_BCHW.mean((1, 2, 3))}

    def tally(self, about: About):
        class Tally:
            def __init__(self):
                self._means = Averages()

            def add(self, observed, valid_B):
                self._means.add(observed, valid_B)

            def result(self):
                return self._means.result()

        return Tally()


def test_a_pass_with_a_tally_without_a_state_begins_anew(tokenizer_run, data, kept, tmp_path):
    run, evaluator = tokenizer_run(), Reconstructions([Unkept(), Distances()], batch_size=100)
    first = begin(evaluator, run, data)
    next(iter(first))
    kept().after_batch(first)
    assert not (tmp_path / "kept").exists()
    again = begin(evaluator, run, data)
    kept().resume(again)
    assert again.num_done == 0
