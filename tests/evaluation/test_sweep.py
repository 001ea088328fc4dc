"""Sweeps of samplers' settings, and samples of which a classifier accepts a part."""
import numpy as np
import pytest
import torch

from vqim.contracts.context import Context
from vqim.evaluation.distances import Averages
from vqim.evaluation.passes import evaluate
from vqim.evaluation.rejection import Acceptance
from vqim.evaluation.samples import Samples
from vqim.evaluation.sweep import label, parse, swept
from vqim.prior.sampler import StepwiseSampler
from vqim.runtime.torch import TorchRuntime
from vqim.state.leaf import select

from .test_kept import BrightnessJudge

RUNTIME = TorchRuntime()


class Tokens:
    """Keeps the tokens and labels of all items."""

    needs, frozen = ("tokens_BNK", "labels_B"), {}

    def observe(self, items, frozen, context):
        return {"tokens": items.tokens_BNK, "labels": items.labels_B}

    def tally(self, about):
        self.tokens, self.labels, metric = [], [], self

        class Tally(Averages):
            def add(self, observed, valid_B):
                metric.tokens.append(observed["tokens"][valid_B])
                metric.labels.append(observed["labels"][valid_B])

            def result(self):
                return {"count": len(np.concatenate(metric.labels))}

        return Tally()


def measured(run, data, evaluator):
    task, state = run
    return evaluate(evaluator.begin(task, data, state, RUNTIME))


def accepted_one_by_one(run, num_images, rate, count):
    """Tokens of `num_images` of each of three classes: the brightest-judged of so many candidates, drawn at once."""
    task, state = run
    labels = np.repeat([0, 1, 2], count)
    draw = StepwiseSampler().bind(task.objective.prior, RUNTIME, len(labels), torch.float32)
    tokens = draw(select(state, "params/prior/"), labels, np.arange(len(labels)), 0)
    context = Context(RUNTIME.kernels)
    scores = BrightnessJudge()({}, task.objective.images(state, tokens, context), context=context).log_softmax(1)
    kept = []
    for start, cls in zip(range(0, len(labels), count), range(3), strict=True):
        best = sorted(range(start, start + count), key=lambda i: -scores[i, cls].item())[:num_images]
        kept += sorted(best)
    return tokens.numpy()[kept]


@pytest.mark.parametrize("batch_size", [4, 25, 60])
def test_accepted_samples_are_the_best_of_each_class_in_batches_of_any_size(prior_run, data, batch_size):
    run, seen = prior_run(), Tokens()
    evaluator = Samples([seen], 5, batch_size, acceptance=Acceptance(BrightnessJudge(), 0.25))
    assert measured(run, data, evaluator)["samples/count"] == 15
    assert np.concatenate(seen.labels).tolist() == [0] * 5 + [1] * 5 + [2] * 5
    np.testing.assert_array_equal(np.concatenate(seen.tokens), accepted_one_by_one(run, 5, 0.25, 20))


def test_a_point_of_a_sweep_measures_what_its_sampler_draws_alone(prior_run, data):
    run, seen = prior_run(), Tokens()
    points = parse(["temperature=0.5,2.0", "top_k=3,none"])
    found = []
    for one in swept(Samples([seen], 6, 9), run[0], RUNTIME, points):
        measured(run, data, one)
        found.append(np.concatenate(seen.tokens))
    for settings, tokens in zip(points, found, strict=True):
        measured(run, data, Samples([seen], 6, 9, sampler=StepwiseSampler(**settings)))
        np.testing.assert_array_equal(np.concatenate(seen.tokens), tokens)
    assert len({tokens.tobytes() for tokens in found}) == 4


def test_a_sweep_is_every_combination_the_last_setting_fastest():
    assert parse(["temperature=0.8,1", "top_k=100, none", "order=halton"]) == [
        {"temperature": 0.8, "top_k": 100, "order": "halton"}, {"temperature": 0.8, "top_k": None, "order": "halton"},
        {"temperature": 1, "top_k": 100, "order": "halton"}, {"temperature": 1, "top_k": None, "order": "halton"}]
    assert parse([]) == []
    assert label({"temperature": 0.80, "top_k": None, "order": "halton"}) == "temperature 0.8, top_k none, order halton"


@pytest.mark.parametrize("texts, message", [
    ([""], "expected NAME=VALUE,VALUE"), (["temperature"], "expected NAME=VALUE"), (["top_k="], "expected NAME=VALUE"),
    (["top_k=1,,2"], "expected NAME=VALUE"), (["=1"], "expected NAME=VALUE"), (["top_k=1,1"], "comes twice"),
    (["top_k=1", "top_k=2"], "top_k is given twice"),
    (["a=" + ",".join(map(str, range(40))), "b=" + ",".join(map(str, range(40)))], "at most 1000 combinations"),
])
def test_a_sweep_of_nothing_or_of_the_same_twice_is_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        parse(texts)


@pytest.mark.parametrize("point, message", [
    ({"temperature": -1.0}, "temperature must be at least 0"), ({"num_steps": 3}, "num_steps: StepwiseSampler has no"),
    ({"guidance": -1.0}, "guidance must be"), ({"acceptance_rate": 0.5}, "acceptance_rate 0.5 needs a classifier"),
    ({"acceptance_rate": 0}, "acceptance_rate must be above 0"),
])
def test_a_point_that_does_not_fit_is_refused_before_any_work(prior_run, point, message):
    with pytest.raises(ValueError, match=message):
        swept(Samples([Tokens()], 6, 9), prior_run()[0], RUNTIME, [point])


def test_a_prior_without_classes_cannot_reject(prior_run):
    samples = Samples([Tokens()], 6, 9, acceptance=Acceptance(BrightnessJudge(), 1.0))
    with pytest.raises(ValueError, match=r"acceptance_rate 0\.5 needs a prior with classes"):
        swept(samples, prior_run(num_classes=0)[0], RUNTIME, [{"acceptance_rate": 0.5}])
