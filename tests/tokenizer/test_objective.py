"""Stage 1: its loss term by term, what it changes and what it never does, learning on real images."""
import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support.steps import RUNTIME, Recorder, make_noisy_state, make_state, run_step
from vqim.contracts.context import Context
from vqim.contracts.learning import Learner
from vqim.nn.module import apply
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.state.leaf import select
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.terms import L2, LogitLaplace
from vqim.training.gradient_task import GradientTask


@pytest.fixture
def make_task(make_tokenizer):
    """`make_task(terms)`: a task with a tiny tokenizer."""
    def make(terms=None, optimizer=None, dropout_rate=0.0, ema_decay=None, quantizer_weight=1.0, **kwargs):
        learner = functools.partial(
            Learner, optimizer=optimizer or AdamW(), learning_rate=Constant(3e-3), ema_decay=ema_decay)
        terms = [L2(), LogitLaplace()] if terms is None else terms
        return GradientTask(
            TokenizerObjective(make_tokenizer(dropout_rate), learner, terms, quantizer_weight=quantizer_weight),
            **kwargs)
    return make


@pytest.fixture(name="batch")
def batch_of_emoji(emoji):
    return RUNTIME.put({"images": emoji, "labels": np.arange(len(emoji), dtype=np.int32),
                        "valid": np.arange(len(emoji)) < 30})


def reconstruct(task, state, batch):
    with torch.no_grad():
        return task.objective.reconstruct(state, batch, Context(RUNTIME.kernels))


def copy(state):
    return {name: array.clone() for name, array in state.items()}


def test_the_loss_is_the_weighted_sum_of_its_terms(make_task, batch):
    task = make_task([LogitLaplace(0.3), L2(5.0)], quantizer_weight=2.0)
    metrics = run_step(task, make_state(task), batch)
    assert {name for name in metrics if name.startswith("loss")} == {
        "loss", "loss/codebook", "loss/commitment", "loss/l2", "loss/logit_laplace"}
    expected = (2 * (metrics["loss/codebook"] + metrics["loss/commitment"])
                + 0.3 * metrics["loss/logit_laplace"] + 5 * metrics["loss/l2"])
    assert metrics["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_learning_rate_and_weights_enter_a_step_as_scalars(make_task):
    task = make_task([LogitLaplace(lambda step: 0.1 * step), L2(5.0)], quantizer_weight=2.0)
    assert task.host_scalars(3) == {
        "learning_rate": 3e-3, "weight/quantizer": 2.0, "weight/logit_laplace": pytest.approx(0.3), "weight/l2": 5.0}


def test_the_default_weight_of_the_quantizers_losses_is_the_papers():
    assert TokenizerObjective.__init__.__kwdefaults__["quantizer_weight"] == 1.0


def test_terms_are_means_over_the_images_values(make_task, batch):
    task = make_task()
    state = make_noisy_state(task, "params/tokenizer/")
    items = reconstruct(task, state, batch)
    metrics = run_step(task, state, batch)
    x, location, log_scale = (
        array.double().numpy() for array in (items.originals_BCHW, items.location_BCHW, items.log_scale_BCHW))
    np.testing.assert_array_equal(x, batch["images"].permute(0, 3, 1, 2).numpy() / np.float32(255))
    mean = (1 / (1 + np.exp(-location)) - 0.1) / 0.8
    assert metrics["loss/l2"].item() == pytest.approx(((x - mean) ** 2).mean(), rel=1e-5)
    y = 0.8 * x + 0.1
    nll = np.log(2 * np.exp(log_scale) * y * (1 - y)) + abs(np.log(y / (1 - y)) - location) / np.exp(log_scale)
    assert metrics["loss/logit_laplace"].item() == pytest.approx(nll.mean(), rel=1e-5)


def test_the_gradient_is_the_weighted_sum_of_the_terms_gradients(make_task, batch):
    def gradients(logit_laplace, l2, quantizer):
        optimizer = Recorder()
        # Schedules: terms whose weight is the number 0 would leave the decoder without a loss.
        terms = [LogitLaplace(Constant(logit_laplace)), L2(Constant(l2))]
        task = make_task(terms, optimizer, quantizer_weight=quantizer)
        run_step(task, make_noisy_state(task, "params/tokenizer/"), batch)
        return optimizer.grads

    weights = np.array([0.3, 5.0, 2.0])
    of_terms = [(weight, gradients(*alone)) for weight, alone in zip(weights, np.eye(3), strict=True)]
    for name, grad in gradients(*weights).items():
        expected = sum(weight * grads[name] for weight, grads in of_terms)
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("num_micro_batches", [1, 4])
def test_the_share_of_codes_in_use_is_that_of_the_whole_batch(make_task, batch, num_micro_batches):
    task = make_task(num_micro_batches=num_micro_batches)
    state = make_noisy_state(task, "params/tokenizer/")
    tokens = reconstruct(task, state, batch).tokens_BNK
    assert len(tokens[::4].unique()) < len(tokens.unique())
    assert run_step(task, state, batch)["codebook/batch_usage"].item() == pytest.approx(len(tokens.unique()) / 32)


def test_every_parameter_learns(make_task, batch):
    task = make_task()
    state = make_noisy_state(task, "params/tokenizer/")
    before = copy(state)
    run_step(task, state, batch)
    for name in task.init_spec():
        if name.startswith("params/") and not name.endswith("attention/key/bias_O"):  # which softmax ignores
            assert not torch.equal(state[name], before[name]), name


def test_stage_1_learns_real_images(make_task, batch):
    task = make_task()
    state = make_state(task)
    history = [run_step(task, state, batch, step) for step in range(100)]
    first, last = history[0], history[-1]
    pixels = batch["images"].double() / 255
    of_the_mean_image = (pixels - pixels.mean(0)).square().mean().item()  # the best answer without looking
    assert first["loss/l2"] > of_the_mean_image
    assert last["loss/l2"] < 0.9 * of_the_mean_image
    assert last["loss/logit_laplace"] < first["loss/logit_laplace"] - 0.5
    assert last["loss"] < first["loss"]


def test_a_step_is_a_function_of_state_batch_step_and_seed(make_task, batch):
    task = make_task(dropout_rate=0.2)

    def loss(step, seed):
        return run_step(task, make_noisy_state(task, "params/tokenizer/"), batch, step, seed)["loss"].item()

    assert loss(3, 7) == loss(3, 7)
    assert len({loss(3, 7), loss(4, 7), loss(3, 8)}) == 3  # dropout differs


def test_bfloat16_computes_the_same_loss_less_exactly(make_task, batch):
    exact, rounded = make_task(), make_task(dtype="bfloat16")
    state = make_noisy_state(rounded, "params/tokenizer/")
    expected = run_step(exact, make_noisy_state(exact, "params/tokenizer/"), batch)
    metrics = run_step(rounded, state, batch)
    assert metrics["loss"].item() == pytest.approx(expected["loss"].item(), rel=0.05)
    assert metrics["loss"].item() != expected["loss"].item()
    assert all(array.dtype == torch.float32 for name, array in state.items() if name.startswith("params/"))


def test_the_description_counts_each_part(make_task):
    task = make_task()
    counts = task.describe()
    assert counts["tokenizer/quantizer"] == (32 * 4 + 4) + 32 * 4 + (4 * 40 + 40)
    assert set(counts) == {"tokenizer/encoder", "tokenizer/quantizer", "tokenizer/decoder"}
    params = [leaf for name, leaf in task.init_spec().items() if name.startswith("params/")]
    assert sum(counts.values()) == sum(math.prod(leaf.shape) for leaf in params)


@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_an_impossible_weight_of_the_quantizers_losses_is_refused(make_task, weight):
    with pytest.raises(ValueError, match=f"quantizer_weight must be at least 0, got {weight}"):
        make_task(quantizer_weight=weight)


def test_data_of_another_size_or_grid_are_refused(make_task):
    objective = make_task().objective
    objective.check_data(SimpleNamespace(image_size=16))
    objective.check_data(SimpleNamespace(image_size=16, levels=[(4, 4, 1, 32)]))
    with pytest.raises(ValueError, match="image_size of the data must be the tokenizer's 16, got 32"):
        objective.check_data(SimpleNamespace(image_size=32))
    with pytest.raises(ValueError, match=r"the token cache must have the tokenizer's grid \[\[4, 4, 1, 32\]\]"):
        objective.check_data(SimpleNamespace(image_size=16, levels=[(4, 4, 1, 64)]))


def test_reconstructions_are_rounded_to_8_bits_as_a_file_is(make_task, batch):
    task = make_task()
    state = make_noisy_state(task, "params/tokenizer/")
    model, params = task.objective.tokenizer, select(state, "params/tokenizer/")
    images = batch["images"].permute(0, 3, 1, 2) / 255
    _, expected = apply(model.forward, params, images, Context(RUNTIME.kernels))
    levels = 255 * reconstruct(task, state, batch).images_BCHW
    assert expected.mean_BCHW.max() > 1.05 and expected.mean_BCHW.min() < -0.05
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert (levels - 255 * expected.mean_BCHW.clamp(0, 1)).abs().max() < 0.501
    assert levels.min() == 0 and levels.max() == 255


def test_reconstructions_come_with_their_tokens_and_labels(make_task, batch):
    task = make_task()
    state = make_noisy_state(task, "params/tokenizer/")
    items = reconstruct(task, state, batch)
    model, params = task.objective.tokenizer, select(state, "params/tokenizer/")
    images = batch["images"].permute(0, 3, 1, 2) / 255
    assert torch.equal(items.tokens_BNK, apply(model.tokens, params, images, Context(RUNTIME.kernels)))
    assert items.labels_B.tolist() == list(range(32)) and items.labels_B.dtype == torch.int64
    assert items.valid_B.tolist() == [True] * 30 + [False] * 2


def test_reconstructions_are_of_evaluation_and_float32_whatever_the_context(make_task, batch):
    task = make_task(dropout_rate=0.5)
    state = make_noisy_state(task, "params/tokenizer/")
    training = Context(RUNTIME.kernels, torch.bfloat16, key=torch.tensor(3, dtype=torch.int32))
    items = task.objective.reconstruct(state, batch, training)
    assert torch.equal(items.images_BCHW, reconstruct(task, state, batch).images_BCHW)


def test_evaluation_takes_the_average_of_parameters_where_there_is_one(make_task, batch):
    task = make_task(ema_decay=0.5)
    state = make_state(task)
    for step in range(3):
        run_step(task, state, batch, step)
    averages = {name.replace("ema/", "params/"): array for name, array in state.items() if name.startswith("ema/")}
    without = {name: array for name, array in state.items() if not name.startswith("ema/")}
    found, expected, of_parameters = (
        reconstruct(task, arrays, batch).location_BCHW for arrays in (state, {**without, **averages}, without))
    assert torch.equal(found, expected)
    assert not torch.equal(found, of_parameters)
