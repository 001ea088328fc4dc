"""Rejection sampling: the choice by a slow one, rates and judges, on an untrained prior."""
import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqim.contracts.learning import Learner
from vqim.evaluation import rejection
from vqim.evaluation.passes import evaluate
from vqim.evaluation.rejection import Acceptance, Rejection, accept
from vqim.evaluation.samples import Samples, bind_sampler, draw_batches
from vqim.frozen.from_run import FromRun
from vqim.nn.module import spec
from vqim.optim import schedules
from vqim.optim.adamw import AdamW
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.objective import PriorObjective
from vqim.runtime.torch import TorchRuntime
from vqim.state.init import Constant
from vqim.state.leaf import Leaf, prefixed
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.gradient_task import GradientTask

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


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60).map(sorted), st.integers(1, 20), st.booleans())
def test_groups_of_labels_are_all_labels_and_keep_a_class_together(labels, size, split_classes):
    found = list(rejection.groups(np.array(labels), size, split_classes))
    assert [first for first, _ in found] == np.cumsum([0, *(len(part) for _, part in found[:-1])]).tolist()
    assert np.concatenate([part for _, part in found]).tolist() == labels
    assert all(len(part) >= size for _, part in found[:-1])
    if not split_classes:
        assert sum(len(set(part)) for _, part in found) == len(set(labels))


class Reddest:
    """Class 1 as surely as an image is red, class 0 otherwise; class 2 never."""

    def __init__(self, image_size=8, num_classes=3, sign=1.0):
        self.image_size, self.num_classes, self.sign = image_size, num_classes, sign

    def init_spec(self):
        return {"sign": Leaf((), Constant(self.sign))}

    def __call__(self, arrays, images_BCHW, *, context):
        assert images_BCHW.dtype == torch.float32 and 0 <= images_BCHW.min() <= images_BCHW.max() <= 1
        redness = arrays["sign"] * 9 * (images_BCHW[:, 0].mean((1, 2)) - images_BCHW[:, 1:].mean((1, 2, 3)))
        return torch.stack([-redness, redness, torch.full_like(redness, -50)], -1)


class OneOfMany:
    """Finds class 9 in every image."""

    image_size = 8

    def __init__(self, num_classes):
        self.num_classes = num_classes

    def init_spec(self):
        return {}

    def __call__(self, arrays, images_BCHW, *, context):
        return torch.nn.functional.one_hot(torch.full((len(images_BCHW),), 9), self.num_classes).float()


class Coloured(PriorObjective):
    """A prior whose tokens, of 0 to 15, are shown as plain colours."""

    def images(self, state, tokens_BNK, context):
        colours = torch.stack([tokens_BNK.float().mean((1, 2)), tokens_BNK[:, 0, 0].float(), tokens_BNK[:, 1, 0]], -1)
        return ((colours * 17).round() / 255)[:, :, None, None].expand(-1, -1, 8, 8)


def make_task(num_classes=3):
    """8x8 images of 2x2 tokens."""
    tokenizer = ImageTokenizer(
        ViTEncoder(8, 4, 8, 1, 2, 8), VectorQuantizer(8, 8, 16, 4), ViTDecoder(8, 4, 8, 1, 2, 8), 8)
    prior = functools.partial(AutoregressivePrior, width=8, num_layers=1, num_heads=2, hidden=8)
    learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=schedules.Constant(1e-3))
    return GradientTask(Coloured(FromRun(tokenizer, "nowhere"), prior, learner, num_classes))


def make_state(task):
    """Random parameters."""
    generator = torch.Generator().manual_seed(0)
    return prefixed("params/prior/", {name: 0.3 * torch.randn(leaf.shape, generator=generator)
                                      for name, leaf in spec(task.objective.prior).items()})


def sampled(task, num_images, classifier):
    """Samples of three classes in turn, drawn one by one: uint8 images, classes, log-probabilities of these classes."""
    labels, state = np.repeat(np.arange(3), num_images).astype(np.int32), make_state(task)
    batches = draw_batches(bind_sampler(task, RUNTIME, 1), task, state, RUNTIME, labels, 1, seed=0)
    images = torch.cat([task.objective.images(state, batch["tokens"], None) for batch in batches])
    logits = classifier({"sign": torch.tensor(classifier.sign)}, images, context=None).double().numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    pictures = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return pictures, labels, np.log(probabilities[np.arange(len(labels)), labels]), probabilities.argmax(1) == labels


def measure(task, num_images=20, **arguments):
    evaluator = Samples([Rejection(**{"classifier": Reddest(), **arguments})], num_images=num_images, batch_size=16)
    return evaluate(evaluator.begin(task, None, make_state(task), RUNTIME))


def test_at_rate_one_the_figures_are_those_of_all_samples():
    task = make_task()
    results = measure(task, rates=(1.0,))
    _, _, scores, hits = sampled(task, 20, Reddest())
    assert results["samples/rejection/classifier_top1_at_1"] == pytest.approx(hits.mean())
    assert results["samples/rejection/classifier_probability_at_1"] == pytest.approx(np.exp(scores).mean(), rel=1e-5)
    assert results["images/accepted_at_1"].shape == (3, 8, 8, 3)


def test_figures_at_a_rate_are_those_of_the_accepted_and_of_each_class_one_is_shown():
    task = make_task()
    results = measure(task, rates=(0.25,), judge=Reddest(sign=-1.0))
    images, labels, scores, _ = sampled(task, 20, Reddest())
    against = sampled(task, 20, Reddest(sign=-1.0))[2]
    accepted = accept(scores, labels, 0.25)
    assert accepted.sum() == 15
    for name, values in (("classifier", scores), ("judge", against)):
        found = results[f"samples/rejection/{name}_probability_at_0.25"]
        assert found == pytest.approx(np.exp(values[accepted]).mean(), rel=1e-5)
    first = [np.flatnonzero(accepted & (labels == label))[0] for label in range(3)]
    np.testing.assert_array_equal(results["images/accepted_at_0.25"], images[first])


def test_eight_classes_are_shown_and_the_figures_are_those_of_all():
    task = make_task(num_classes=11)
    results = measure(task, 2, classifier=OneOfMany(11), rates=(1.0,))
    assert results["images/accepted_at_1"].shape == (8, 8, 8, 3)
    assert results["samples/rejection/classifier_top1_at_1"] == pytest.approx(1 / 11)


def test_where_no_class_is_among_the_first_eight_there_are_figures_and_no_image():
    evaluator = Samples([Rejection(OneOfMany(11), rates=(1.0,))], num_images=2, batch_size=4, labels=(9, 10))
    task = make_task(num_classes=11)
    results = evaluate(evaluator.begin(task, None, make_state(task), RUNTIME))
    assert results["samples/rejection/classifier_top1_at_1"] == pytest.approx(1 / 2)
    assert not [name for name in results if name.startswith("images/")]


def test_the_lower_the_rate_the_surer_the_classifier_and_who_agrees_with_it():
    results = measure(make_task(), rates=(1.0, 0.5, 0.25, 0.05), judge=Reddest())
    for name in ("classifier", "judge"):
        found = [results[f"samples/rejection/{name}_probability_at_{rate}"] for rate in ("1", "0.5", "0.25", "0.05")]
        assert found == sorted(set(found))
    assert results["samples/rejection/classifier_top1_at_0.05"] == pytest.approx(2 / 3)  # nothing is of class 2


def test_a_judge_that_sees_the_opposite_finds_the_accepted_ones_worse():
    results = measure(make_task(), rates=(1.0, 0.25), judge=Reddest(sign=-1.0))
    assert results["samples/rejection/classifier_top1_at_0.25"] > results["samples/rejection/classifier_top1_at_1"]
    assert results["samples/rejection/judge_top1_at_0.25"] < results["samples/rejection/judge_top1_at_1"]


def test_without_a_judge_there_are_no_figures_of_one():
    assert not [name for name in measure(make_task(), rates=(1.0,)) if "judge" in name]


@pytest.mark.parametrize("arguments, message", [
    ({"image_size": 16}, "must have the prior's image_size, 8, got 16"),
    ({"num_classes": 4}, "must have the prior's num_classes, 3, got 4"),
])
def test_a_classifier_of_other_images_or_classes_is_refused(arguments, message):
    for name in ("classifier", "judge"):
        with pytest.raises(ValueError, match=f"{name} {message}"):
            measure(make_task(), **{name: Reddest(**arguments)})
    with pytest.raises(ValueError, match=f"classifier {message}"):
        rejection.check_classifier(Reddest(**arguments), 3, 8)


@pytest.mark.parametrize("rates", [(1.0, 0.0), (1.5,), (float("nan"),)])
def test_rates_out_of_range_are_refused(rates):
    with pytest.raises(ValueError, match="rates must be above 0 and at most 1"):
        Rejection(Reddest(), rates)


def test_accepting_less_than_all_needs_a_classifier():
    assert Acceptance().acceptance_rate == Acceptance(Reddest()).acceptance_rate == 1.0
    with pytest.raises(ValueError, match="acceptance_rate 0.5 needs a classifier"):
        Acceptance(acceptance_rate=0.5)
    with pytest.raises(ValueError, match="acceptance_rate must be above 0 and at most 1"):
        Acceptance(Reddest(), acceptance_rate=0.0)
