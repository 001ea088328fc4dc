"""Linear probes: regression by hand, heads that share nothing, running statistics, separable data."""
import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support.steps import RUNTIME, Recorder, make_state, run_step
from vqim.contracts.context import Context
from vqim.contracts.learning import Learner
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.probe.objective import ProbeObjective
from vqim.training.gradient_task import GradientTask

WIDTH, CLASSES = 5, 3


class Given:
    """Features that come with the batch, [B, L, D] as everything of a batch."""

    image_size, width = 8, WIDTH

    def __init__(self, num_layers):
        self.num_layers = num_layers

    def init_spec(self):
        return {}

    def __call__(self, arrays, batch, *, context):
        return batch["features"].transpose(0, 1)


def make_task(num_layers=1, optimizer=None, num_classes=CLASSES, num_micro_batches=1):
    learner = functools.partial(Learner, optimizer=optimizer or AdamW(), learning_rate=Constant(0.1))
    return GradientTask(ProbeObjective(Given(num_layers), num_classes, learner), num_micro_batches)


def make_batch(num_layers=1, batch_size=30):
    """Layers of different means and scales, and labels that every layer knows something about."""
    labels = torch.arange(batch_size) % CLASSES
    features = torch.randn(num_layers, batch_size, WIDTH)
    features[:, :, :CLASSES] += torch.eye(CLASSES)[labels]
    scales = torch.logspace(-1, 1, num_layers)[:, None, None]
    return as_batch(1 + scales * features, labels)


def as_batch(features_LBD, labels_B):
    return {"features": features_LBD.transpose(0, 1), "labels": labels_B.int(),
            "valid": torch.ones(len(labels_B), dtype=torch.bool)}


def classify(task, state, batch):
    """Class logits [L, B, C]."""
    return task.objective.classify(state, batch, Context(RUNTIME.kernels)).logits_LBY


def features_of(batch):
    """[L, B, D] in float64."""
    return batch["features"].transpose(0, 1).double().numpy()


def standardise(x):
    return (x - x.mean(-2, keepdims=True)) / np.sqrt(x.var(-2, keepdims=True) + 1e-5)


def test_a_fresh_head_holds_every_class_equally_likely():
    task = make_task(2)
    state = make_state(task)
    assert run_step(task, state, make_batch(2))["loss"].item() == pytest.approx(math.log(CLASSES))


def test_the_gradient_is_softmax_regressions():
    optimizer = Recorder()
    task, batch = make_task(2, optimizer), make_batch(2)
    state = make_state(task)
    state["params/probe/kernel_LDC"] = torch.randn(2, WIDTH, CLASSES)
    state["params/probe/bias_LC"] = torch.randn(2, CLASSES)
    metrics = run_step(task, state, batch)
    x = standardise(features_of(batch))
    kernel, bias = (state[f"params/probe/{name}"].double().numpy() for name in ("kernel_LDC", "bias_LC"))
    logits = x @ kernel + bias[:, None]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    error = (p - np.eye(CLASSES)[batch["labels"]]) / 30
    np.testing.assert_allclose(optimizer.grads["kernel_LDC"], x.transpose(0, 2, 1) @ error, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(optimizer.grads["bias_LC"], error.sum(1), rtol=1e-3, atol=1e-6)
    expected = -np.log(np.take_along_axis(p, batch["labels"].numpy()[None, :, None].repeat(2, 0), -1)).mean()
    assert metrics["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_every_layers_head_is_trained_as_it_would_be_alone():
    together, batches = make_task(3), [make_batch(3) for _ in range(10)]
    state = make_state(together)
    for step, batch in enumerate(batches):
        run_step(together, state, batch, step)
    for layer in range(3):
        alone = make_task(1)
        own = make_state(alone)
        for step, batch in enumerate(batches):
            run_step(alone, own, {**batch, "features": batch["features"][:, layer:layer + 1]}, step)
        for name in ("params/probe/kernel_LDC", "params/probe/bias_LC", "statistics/probe/mean_LD"):
            torch.testing.assert_close(state[name][layer], own[name][0], rtol=1e-4, atol=1e-5)


def test_running_statistics_begin_with_the_first_batch_and_move_by_a_twentieth():
    task, batches = make_task(2), [make_batch(2) for _ in range(4)]
    state = make_state(task)
    for step, batch in enumerate(batches):
        run_step(task, state, batch, step)
    means, variances = (np.stack([getattr(features_of(batch), name)(1) for batch in batches])
                        for name in ("mean", "var"))
    weights = np.array([0.95**3, 0.05 * 0.95**2, 0.05 * 0.95, 0.05])
    np.testing.assert_allclose(state["statistics/probe/mean_LD"], np.tensordot(weights, means, 1), rtol=1e-5)
    np.testing.assert_allclose(state["statistics/probe/variance_LD"], np.tensordot(weights, variances, 1), rtol=1e-3)


def test_running_statistics_are_means_of_those_of_micro_batches():
    # Each micro-batch is standardised by its own, so these are what evaluation has to expect.
    task, batches = make_task(2, num_micro_batches=2), [make_batch(2) for _ in range(2)]
    state = make_state(task)
    for step, batch in enumerate(batches):
        batch["features"][::2] *= 1.5  # rows alternate between the parts
        run_step(task, state, batch, step)
    parts = [[features_of(batch)[:, number::2] for number in range(2)] for batch in batches]
    for name, statistic in (("mean", np.mean), ("variance", np.var)):
        first, second = (np.mean([statistic(part, 1) for part in of_step], 0) for of_step in parts)
        np.testing.assert_allclose(
            state[f"statistics/probe/{name}_LD"], 0.95 * first + 0.05 * second, rtol=1e-4, atol=1e-5)


def test_evaluation_uses_the_running_statistics():
    task, batch = make_task(2), make_batch(2)
    state = make_state(task)
    for name, array in state.items():
        if name.startswith(("params/", "statistics/")):
            array.copy_(torch.rand_like(array) + 0.5)
    x = features_of(batch)
    mean, variance = (state[f"statistics/probe/{name}_LD"].double().numpy()[:, None] for name in ("mean", "variance"))
    kernel, bias = (state[f"params/probe/{name}"].double().numpy() for name in ("kernel_LDC", "bias_LC"))
    expected = (x - mean) / np.sqrt(variance + 1e-5) @ kernel + bias[:, None]
    np.testing.assert_allclose(classify(task, state, batch), expected, rtol=1e-4, atol=1e-4)
    one = {name: array[:1] for name, array in batch.items()}
    torch.testing.assert_close(classify(task, state, one), classify(task, state, batch)[:, :1])


def test_linearly_separable_classes_are_told_apart_without_error():
    # Each class around a corner of a triangle, at a distance of six deviations from the others.
    corners = 6 * torch.eye(CLASSES, WIDTH)

    def draw(batch_size):
        labels = torch.arange(batch_size) % CLASSES
        clean = corners[labels] + torch.randn(batch_size, WIDTH).clamp(-2, 2)
        noise = torch.randn(batch_size, WIDTH)
        return as_batch(torch.stack([clean, noise]), labels)

    task = make_task(2)
    state = make_state(task)
    for step in range(60):
        run_step(task, state, draw(60), step)
    test = draw(600)
    correct = classify(task, state, test).argmax(-1) == test["labels"]
    assert correct[0].all()
    assert correct[1].float().mean() < 0.45  # a third, for features that know nothing


def test_constant_features_are_harmless():
    task, batch = make_task(), make_batch()
    batch["features"][..., 0] = 3.0
    state = make_state(task)
    for step in range(5):
        metrics = run_step(task, state, batch, step)
    assert state["health/first_bad_step"].item() == -1 and torch.isfinite(metrics["loss"])


def test_features_that_are_not_finite_change_nothing():
    task, batch = make_task(2), make_batch(2)
    state = make_state(task)
    run_step(task, state, batch, 0)
    before = {name: array.clone() for name, array in state.items()}
    bad = {**batch, "features": batch["features"].clone()}
    bad["features"][4, 1, 2] = math.nan
    run_step(task, state, bad, 1)
    changed = {name for name in state if not torch.equal(state[name], before[name])}
    assert changed == {"health/first_bad_step", "health/is_bad"}
    run_step(task, state, batch, 2)
    assert all(torch.equal(state[name], array) for name, array in before.items() if not name.startswith("health/"))


def test_the_description_counts_the_heads():
    assert make_task(4).describe() == {"probe": 4 * (WIDTH + 1) * CLASSES}


def test_one_class_is_no_task():
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        make_task(num_classes=1)


def test_data_with_other_classes_or_sizes_are_refused():
    make_task().objective.check_data(SimpleNamespace(num_classes=3, image_size=8))
    with pytest.raises(ValueError, match="num_classes must be the data's 4, got 3"):
        make_task().objective.check_data(SimpleNamespace(num_classes=4, image_size=8))
    with pytest.raises(ValueError, match="image_size of the data must be 8, got 16"):
        make_task().objective.check_data(SimpleNamespace(num_classes=3, image_size=16))
