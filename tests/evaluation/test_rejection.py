"""Rejection sampling: the choice by a slow one, streams that hold little, rates and judges, on an untrained prior."""
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqim.evaluation import rejection
from vqim.evaluation.rejection import Candidates, CandidateSampler, Rejection, RejectionEvaluator, accept
from vqim.nn.module import spec
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.sampler import Sampler
from vqim.runtime.torch import TorchRuntime
from vqim.state.init import Constant
from vqim.state.leaf import Leaf, prefixed
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder

RUNTIME = TorchRuntime()
RATES = st.sampled_from([1.0, 0.5, 0.25, 0.1, 0.05, 1 / 3])


def accept_slowly(scores, labels, rate):
    """One label after the other, the best candidate that is left, until there are enough."""
    accepted = [False] * len(scores)
    for label in set(labels):
        left = [i for i in range(len(scores)) if labels[i] == label]
        for _ in range(max(1, int(len(left) * rate + 1e-6))):
            best = max(left, key=lambda i: (scores[i], -i))
            accepted[best] = True
            left.remove(best)
    return accepted


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=40), RATES)
def test_the_accepted_are_those_of_a_slow_choice(pairs, rate):
    scores, labels = (np.array(column) for column in zip(*pairs, strict=True))
    assert accept(scores.astype(np.float32), labels, rate).tolist() == accept_slowly(scores, labels, rate)


def test_of_four_candidates_a_quarter_is_the_best():
    accepted = accept(np.array([-3.0, -0.1, -2.0, -1.0]), np.zeros(4, int), 0.25)
    assert accepted.tolist() == [False, True, False, False]


@given(st.integers(1, 200), st.floats(0.01, 1))
def test_as_many_candidates_as_needed_give_as_many_as_wanted(wanted, rate):
    num_candidates = rejection.num_needed(wanted, rate)
    assert accept(np.zeros(num_candidates), np.zeros(num_candidates, int), rate).sum() == wanted
    assert num_candidates - wanted / rate < 1


def make_candidates(labels):
    """A picture of each label that holds its number."""
    numbers = np.arange(len(labels))
    images = np.broadcast_to(numbers[:, None, None, None].astype(np.uint8), (len(labels), 2, 2, 3))
    scores = np.random.default_rng(0).normal(size=(2, len(labels))).astype(np.float32)
    return Candidates(np.array(labels), images, scores, scores > 0)


def part(candidates, where):
    return Candidates(*(getattr(candidates, field.name)[(slice(None),) * field.name.endswith("MB") + (where,)]
                        for field in dataclasses.fields(candidates)))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 50])
def test_a_stream_of_candidates_is_accepted_as_all_of_them_at_once(batch_size):
    candidates = make_candidates([0] * 10 + [2] * 4 + [3] * 13)
    batches = (part(candidates, slice(i, i + batch_size)) for i in range(0, 27, batch_size))
    found = list(rejection.accepted(batches, 0.3))
    expected = part(candidates, accept(candidates.scores_MB[0], candidates.labels_B, 0.3))
    for field in dataclasses.fields(Candidates):
        axis = 1 if field.name.endswith("MB") else 0
        joined = np.concatenate([getattr(batch, field.name) for batch in found], axis)
        np.testing.assert_array_equal(joined, getattr(expected, field.name))
    assert len(expected.labels_B) == 3 + 1 + 3


def test_accepted_pictures_of_a_class_come_before_the_next_class_is_drawn():
    candidates, drawn = make_candidates([0] * 4 + [1] * 4 + [2] * 4), []

    def batches():
        for i in range(0, 12, 2):
            drawn.append(i)
            yield part(candidates, slice(i, i + 2))

    stream = rejection.accepted(batches(), 0.5)
    assert next(stream).labels_B.tolist() == [0, 0] and drawn == [0, 2, 4]


class Reddest:
    """Class 1 as surely as a picture is red, class 0 otherwise; class 2 never."""

    def __init__(self, image_size=8, num_classes=3, sign=1.0):
        self.image_size, self.num_classes, self.sign = image_size, num_classes, sign

    def init_spec(self):
        return {"sign": Leaf((), Constant(self.sign))}

    def logits(self, frozen, images_BCHW, context):
        assert images_BCHW.dtype == torch.float32 and 0 <= images_BCHW.min() <= images_BCHW.max() <= 1
        redness = frozen["sign"] * 9 * (images_BCHW[:, 0].mean((1, 2)) - images_BCHW[:, 1:].mean((1, 2, 3)))
        return torch.stack([-redness, redness, torch.full_like(redness, -50)], -1)


def make_task(num_classes=3):
    """What the evaluator sees of a prior's task: 8x8 pictures of 2x2 tokens, drawn from random parameters."""
    tokenizer = ImageTokenizer(
        ViTEncoder(8, 4, 8, 1, 2, 8), VectorQuantizer(8, 8, 16, 4), ViTDecoder(8, 4, 8, 1, 2, 8), 8)
    prior = AutoregressivePrior(tokenizer.grid, num_classes, width=8, num_layers=1, num_heads=2, hidden=8)

    def images(state, tokens_BNK, kernels):
        colours = torch.stack([tokens_BNK.float().mean((1, 2)), tokens_BNK[:, 0, 0].float(), tokens_BNK[:, 1, 0]], -1)
        return (colours / 15)[:, :, None, None].expand(-1, -1, 8, 8)

    return SimpleNamespace(
        tokenizer=tokenizer, prior=prior, num_classes=num_classes, dtype=torch.float32, images=images)


def make_state(task):
    generator = torch.Generator().manual_seed(0)
    return prefixed("params/prior/", {
        name: 0.3 * torch.randn(leaf.shape, generator=generator) for name, leaf in spec(task.prior).items()})


def make_sampler(task, batch_size):
    return Sampler(task.prior, RUNTIME, batch_size)


def evaluate(task, **arguments):
    evaluator = RejectionEvaluator(**{"classifier": Reddest(), "num_candidates": 20, "batch_size": 16, **arguments})
    return evaluator(task, None, make_state(task), RUNTIME)


def test_scores_are_log_probabilities_and_hits_the_likeliest_class():
    task = make_task()
    labels = np.array([0, 1, 1, 2, 0], np.int32)
    sampler = CandidateSampler(task, make_sampler(task, 2), [Reddest(), Reddest(sign=-1.0)])
    batches = list(sampler(make_state(task), labels, seed=0))
    assert [len(batch.labels_B) for batch in batches] == [2, 2, 1]
    for batch in batches:
        pictures = torch.from_numpy(batch.images_BHWC.astype(np.float32) / 255).permute(0, 3, 1, 2)
        for m, sign in enumerate((1.0, -1.0)):
            logits = Reddest().logits({"sign": torch.tensor(sign)}, pictures, None).double().numpy()
            probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            of_label = probabilities[np.arange(len(logits)), batch.labels_B]
            np.testing.assert_allclose(batch.scores_MB[m], np.log(of_label), rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(batch.hits_MB[m], probabilities.max(1) == of_label)


def test_the_same_seed_draws_the_same_pictures_with_and_without_classifiers():
    task, labels = make_task(), np.array([0, 1, 2, 1], np.int32)
    state = make_state(task)

    def draw(classifiers, seed):
        sampler = CandidateSampler(task, make_sampler(task, 3), classifiers)
        return np.concatenate([batch.images_BHWC for batch in sampler(state, labels, seed)])

    assert (draw([], 0) == draw([Reddest()], 0)).all()
    assert (draw([], 0) != draw([], 1)).any()


def test_at_rate_one_the_figures_are_those_of_all_samples():
    task = make_task()
    results = evaluate(task, rates=(1.0,))
    sampler = CandidateSampler(task, make_sampler(task, 16), [Reddest()])
    batches = list(sampler(make_state(task), np.repeat(np.arange(3, dtype=np.int32), 20), 0))
    hits = np.concatenate([batch.hits_MB[0] for batch in batches])
    scores = np.concatenate([batch.scores_MB[0] for batch in batches])
    assert results["rejection/classifier_top1_at_1"] == pytest.approx(hits.mean())
    assert results["rejection/classifier_probability_at_1"] == pytest.approx(np.exp(scores).mean(), rel=1e-5)
    assert results["images/accepted_at_1"].shape == (3, 8, 8, 3)


def test_the_lower_the_rate_the_surer_the_classifier_and_who_agrees_with_it():
    results = evaluate(make_task(), rates=(1.0, 0.5, 0.25, 0.05), judge=Reddest())
    for name in ("classifier", "judge"):
        found = [results[f"rejection/{name}_probability_at_{rate}"] for rate in ("1", "0.5", "0.25", "0.05")]
        assert found == sorted(set(found))
    assert results["rejection/classifier_top1_at_0.05"] == pytest.approx(2 / 3)  # nothing is of class 2


def test_a_judge_that_sees_the_opposite_finds_the_accepted_ones_worse():
    results = evaluate(make_task(), rates=(1.0, 0.25), judge=Reddest(sign=-1.0))
    assert results["rejection/classifier_top1_at_0.25"] > results["rejection/classifier_top1_at_1"]
    assert results["rejection/judge_top1_at_0.25"] < results["rejection/judge_top1_at_1"]


def test_without_a_judge_there_are_no_figures_of_one():
    assert not [name for name in evaluate(make_task(), rates=(1.0,)) if "judge" in name]


@pytest.mark.parametrize("classifier, message", [
    (Reddest(image_size=16), "classifier must have the prior's image_size, 8, got 16"),
    (Reddest(num_classes=4), "classifier must have the prior's num_classes, 3, got 4"),
])
def test_a_classifier_of_other_pictures_or_classes_is_refused(classifier, message):
    for arguments in ({"classifier": classifier}, {"judge": classifier}):
        with pytest.raises(ValueError, match=message):
            evaluate(make_task(), **arguments)


@pytest.mark.parametrize("arguments, message", [
    ({"rates": (1.0, 0.0)}, "rates must be above 0 and at most 1"),
    ({"rates": (1.5,)}, "rates must be above 0 and at most 1"),
    ({"rates": (0.05,), "num_candidates": 19}, "num_candidates must be at least 20 .* the rate 0.05, got 19"),
    ({"temperature": -1.0}, "temperature must be at least 0"),
])
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RejectionEvaluator(**{"classifier": Reddest(), "num_candidates": 20, "batch_size": 16, **arguments})


def test_accepting_less_than_all_needs_a_classifier():
    assert Rejection().acceptance_rate == Rejection(Reddest()).acceptance_rate == 1.0
    with pytest.raises(ValueError, match="acceptance_rate 0.5 needs a classifier"):
        Rejection(acceptance_rate=0.5)
    with pytest.raises(ValueError, match="acceptance_rate must be above 0 and at most 1"):
        Rejection(Reddest(), acceptance_rate=0.0)
