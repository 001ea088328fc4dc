"""The stage 1 step: its loss term by term, what it changes and what it never does, learning on real pictures."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.runtime.torch import TorchRuntime
from vqim.tokenizer.perceptual import Perceptual, lpips
from vqim.tokenizer.task import TokenizerTask
from vqim.training.state import start

RUNTIME = TorchRuntime()


class Recorder:
    """An optimizer that keeps the gradients it is given and changes nothing."""

    def init_spec(self, params):
        return {}

    def update(self, params, grads, slots, *, learning_rate, step, keep):
        self.grads, self.keep = grads, keep.item()
        return {"update_norm": torch.zeros(())}


@pytest.fixture
def make_task(make_tokenizer):
    """`make_task(...)`: a task with a tiny tokenizer."""
    def make(optimizer=None, dropout_rate=0.0, **kwargs):
        return TokenizerTask(make_tokenizer(dropout_rate), optimizer or AdamW(), Constant(3e-3), **kwargs)
    return make


@pytest.fixture(name="batch")
def batch_of_emoji(emoji):
    return RUNTIME.put({"images": emoji, "labels": np.zeros(len(emoji), np.int32)})


def make_state(task, seed=0):
    return start(task.init_spec(), seed, RUNTIME).arrays


def make_noisy_state(task):
    """A state in which blocks do something: they begin as the identity."""
    state, generator = make_state(task), torch.Generator().manual_seed(0)
    for name, array in state.items():
        if name.startswith("params/tokenizer/"):
            array += 0.3 * torch.randn(array.shape, generator=generator)
    return state


def run_step(task, state, batch, step=0, seed=0):
    scalars = RUNTIME.scalars({**task.host_scalars(step), "step": step, "seed": seed})
    return task.train_step(state, batch, scalars, RUNTIME.kernels)


def copy(state):
    return {name: array.clone() for name, array in state.items()}


def test_the_loss_is_the_weighted_sum_of_its_terms(make_task, batch):
    task = make_task(quantizer_weight=2.0, logit_laplace_weight=0.3, l2_weight=5.0)
    metrics = run_step(task, make_state(task), batch)
    assert {name for name in metrics if name.startswith("loss")} == {
        "loss", "loss/codebook", "loss/commitment", "loss/l2", "loss/logit_laplace"}
    expected = (2 * (metrics["loss/codebook"] + metrics["loss/commitment"])
                + 0.3 * metrics["loss/logit_laplace"] + 5 * metrics["loss/l2"])
    assert metrics["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_learning_rate_and_weights_enter_a_step_as_scalars(make_task):
    task = make_task(quantizer_weight=2.0, logit_laplace_weight=0.3, l2_weight=5.0)
    assert task.host_scalars(0) == {
        "learning_rate": 3e-3, "weight/quantizer": 2.0, "weight/logit_laplace": 0.3, "weight/l2": 5.0}
    with_lpips = make_task(perceptual=Perceptual(), perceptual_weight=0.7)
    assert with_lpips.host_scalars(0)["weight/perceptual"] == 0.7


def test_the_default_weights_are_the_papers():
    weights = TokenizerTask.__init__.__kwdefaults__
    assert (weights["quantizer_weight"], weights["logit_laplace_weight"], weights["l2_weight"]) == (1.0, 0.1, 1.0)
    assert weights["perceptual_weight"] == 0.1 and weights["max_gradient_norm"] is None


def test_terms_are_means_over_the_pictures_values(make_task, batch):
    task = make_task()
    state = make_noisy_state(task)
    images, quantized, reconstruction = task.reconstruct(state, batch, RUNTIME.kernels)
    metrics = run_step(task, state, batch)
    x, mean, location, log_scale = (
        array.detach().double().numpy()
        for array in (images, reconstruction.mean_BCHW, reconstruction.location_BCHW, reconstruction.log_scale_BCHW))
    np.testing.assert_array_equal(x, batch["images"].permute(0, 3, 1, 2).numpy() / np.float32(255))
    assert metrics["loss/l2"].item() == pytest.approx(((x - mean) ** 2).mean(), rel=1e-5)
    y = 0.8 * x + 0.1
    nll = np.log(2 * np.exp(log_scale) * y * (1 - y)) + abs(np.log(y / (1 - y)) - location) / np.exp(log_scale)
    assert metrics["loss/logit_laplace"].item() == pytest.approx(nll.mean(), rel=1e-5)
    num_used = len(quantized.indices[0].unique())
    assert metrics["codebook/batch_usage"].item() == pytest.approx(num_used / 32)


def test_the_gradient_is_the_weighted_sum_of_the_terms_gradients(make_task, batch):
    zero = {"quantizer_weight": 0.0, "logit_laplace_weight": 0.0, "l2_weight": 0.0}
    weights = {"quantizer_weight": 2.0, "logit_laplace_weight": 0.3, "l2_weight": 5.0}

    def gradients(**kwargs):
        optimizer = Recorder()
        task = make_task(optimizer, **{**zero, **kwargs})
        run_step(task, make_noisy_state(task), batch)
        return optimizer.grads

    terms = [(weight, gradients(**{name: 1.0})) for name, weight in weights.items()]
    for name, grad in gradients(**weights).items():
        expected = sum(weight * grads[name] for weight, grads in terms)
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-6)


def test_every_parameter_learns(make_task, batch):
    task = make_task()
    state = make_noisy_state(task)
    before = copy(state)
    run_step(task, state, batch)
    for name in task.init_spec():
        if name.startswith("params/") and not name.endswith("attention/key/bias_O"):  # which softmax ignores
            assert not torch.equal(state[name], before[name]), name


def test_stage_1_learns_real_pictures(make_task, batch):
    task = make_task()
    state = make_state(task)
    history = [run_step(task, state, batch, step) for step in range(100)]
    first, last = history[0], history[-1]
    pixels = batch["images"].double() / 255
    of_the_mean_picture = (pixels - pixels.mean(0)).square().mean().item()  # the best answer without looking
    assert first["loss/l2"] > of_the_mean_picture
    assert last["loss/l2"] < 0.9 * of_the_mean_picture
    assert last["loss/logit_laplace"] < first["loss/logit_laplace"] - 0.5
    assert last["loss"] < first["loss"]


def test_a_step_is_a_function_of_state_batch_step_and_seed(make_task, batch):
    task = make_task(dropout_rate=0.2)

    def loss(step, seed):
        return run_step(task, make_noisy_state(task), batch, step, seed)["loss"].item()

    assert loss(3, 7) == loss(3, 7)
    assert len({loss(3, 7), loss(4, 7), loss(3, 8)}) == 3  # dropout differs


def test_a_value_that_is_not_finite_changes_nothing_ever_after(make_task, batch):
    task = make_task()
    state = make_noisy_state(task)
    run_step(task, state, batch, 0)
    healthy = state["params/tokenizer/encoder/embed/bias_O"].clone()
    state["params/tokenizer/encoder/embed/bias_O"][3] = math.nan
    poisoned = copy(state)
    run_step(task, state, batch, 1)
    assert state["health/first_bad_step"].item() == 1
    names = [name for name, bad in zip(task.checked, state["health/is_bad"], strict=True) if bad]
    assert "loss" in names and "encoder/embed/kernel_IO" in names
    state["params/tokenizer/encoder/embed/bias_O"].copy_(healthy)
    poisoned["params/tokenizer/encoder/embed/bias_O"] = healthy
    run_step(task, state, batch, 2)
    for name, array in poisoned.items():
        if not name.startswith("health/"):
            assert torch.equal(state[name], array), name


def test_gradients_are_scaled_down_to_their_largest_norm(make_task, batch):
    free, clipped, loose = Recorder(), Recorder(), Recorder()
    metrics = {}
    for optimizer, limit in ((free, None), (clipped, 0.01), (loose, 1e6)):
        task = make_task(optimizer, max_gradient_norm=limit)
        metrics[optimizer] = run_step(task, make_noisy_state(task), batch)["gradient_norm"].item()
    norm = math.sqrt(sum(grad.double().square().sum() for grad in free.grads.values()))
    assert norm > 0.1
    assert metrics[free] == metrics[clipped] == metrics[loose] == pytest.approx(norm, rel=1e-5)
    for name, grad in free.grads.items():
        torch.testing.assert_close(clipped.grads[name], grad * (0.01 / norm))
        assert torch.equal(loose.grads[name], grad)


def test_bfloat16_computes_the_same_loss_less_exactly(make_task, batch):
    exact, rounded = make_task(), make_task(dtype="bfloat16")
    state = make_noisy_state(rounded)
    expected = run_step(exact, make_noisy_state(exact), batch)
    metrics = run_step(rounded, state, batch)
    assert metrics["loss"].item() == pytest.approx(expected["loss"].item(), rel=0.05)
    assert metrics["loss"].item() != expected["loss"].item()
    assert all(array.dtype == torch.float32 for name, array in state.items() if name.startswith("params/"))


def test_the_perceptual_term_is_lpips_and_its_weights_are_frozen(make_task, batch):
    batch = {name: array[:4] for name, array in batch.items()}
    task = make_task(perceptual=Perceptual(), perceptual_weight=0.7)
    state = make_state(task)
    before = copy(state)
    images, _, reconstruction = task.reconstruct(state, batch, RUNTIME.kernels)
    metrics = run_step(task, state, batch)
    weights = {name.removeprefix("frozen/lpips/"): array
               for name, array in before.items() if name.startswith("frozen/lpips/")}
    expected = lpips(weights, images, reconstruction.mean_BCHW)
    torch.testing.assert_close(task.lpips(before, images, reconstruction.mean_BCHW), expected)
    assert metrics["loss/perceptual"].item() == pytest.approx(expected.mean().item(), rel=1e-4)
    others = (metrics["loss/codebook"] + metrics["loss/commitment"] + 0.1 * metrics["loss/logit_laplace"]
              + metrics["loss/l2"])
    assert metrics["loss"].item() == pytest.approx((others + 0.7 * metrics["loss/perceptual"]).item(), rel=1e-5)
    assert all(torch.equal(state[f"frozen/lpips/{name}"], array) for name, array in weights.items())
    assert task.lpips(before, images, images).abs().max() == 0


def test_without_a_perceptual_loss_there_is_no_lpips(make_task, batch):
    task = make_task(perceptual=None)
    assert not any(name.startswith("frozen/") for name in task.init_spec())
    images = torch.zeros(1, 3, 16, 16)
    assert task.lpips(make_state(task), images, images) is None


def test_the_description_counts_each_part(make_task):
    task = make_task()
    counts = task.describe()
    assert counts["tokenizer/quantizer"] == (32 * 4 + 4) + 32 * 4 + (4 * 40 + 40)
    assert set(counts) == {"tokenizer/encoder", "tokenizer/quantizer", "tokenizer/decoder"}
    params = [leaf for name, leaf in task.init_spec().items() if name.startswith("params/")]
    assert sum(counts.values()) == sum(math.prod(leaf.shape) for leaf in params)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"dtype": "float16"}, r"dtype must be one of \['bfloat16', 'float32'\], got 'float16'"),
    ({"l2_weight": -1.0}, "l2_weight must be at least 0, got -1.0"),
    ({"quantizer_weight": -1.0}, "quantizer_weight must be at least 0, got -1.0"),
    ({"perceptual_weight": math.nan}, "perceptual_weight must be at least 0, got nan"),
    ({"max_gradient_norm": 0.0}, "max_gradient_norm must be positive or None, got 0.0"),
])
def test_impossible_settings_are_refused_before_training(make_task, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_task(**arguments)


def test_data_of_another_size_or_grid_are_refused(make_task):
    task = make_task()
    task.check_data(SimpleNamespace(image_size=16))
    task.check_data(SimpleNamespace(image_size=16, levels=[(4, 4, 1, 32)]))
    with pytest.raises(ValueError, match="image_size of the data must be the tokenizer's 16, got 32"):
        task.check_data(SimpleNamespace(image_size=32))
    with pytest.raises(ValueError, match=r"the token cache must have the tokenizer's grid \[\[4, 4, 1, 32\]\]"):
        task.check_data(SimpleNamespace(image_size=16, levels=[(4, 4, 1, 64)]))


def test_evaluation_takes_the_average_of_parameters_where_there_is_one(make_task, batch):
    task = make_task(ema_decay=0.5)
    state = make_state(task)
    for step in range(3):
        run_step(task, state, batch, step)
    averages = {name.replace("ema/", "params/"): array for name, array in state.items() if name.startswith("ema/")}
    plain = make_task()
    _, _, expected = plain.reconstruct({**state, **averages}, batch, RUNTIME.kernels)
    _, _, reconstruction = task.reconstruct(state, batch, RUNTIME.kernels)
    _, _, of_parameters = plain.reconstruct(state, batch, RUNTIME.kernels)
    assert torch.equal(reconstruction.mean_BCHW, expected.mean_BCHW)
    assert not torch.equal(reconstruction.mean_BCHW, of_parameters.mean_BCHW)


def test_an_average_changes_no_training(make_task, batch):
    task, plain = make_task(ema_decay=0.9), make_task()
    state, expected = make_state(task), make_state(plain)
    for step in range(3):
        run_step(task, state, batch, step)
        run_step(plain, expected, batch, step)
    assert all(torch.equal(state[name], array) for name, array in expected.items())
