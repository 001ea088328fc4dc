"""The stage 2 step: the tokenizer's tokens, a tokenizer that stays frozen, a loss that falls."""
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vqim.nn.layers import Dense
from vqim.nn.module import apply
from vqim.optim.adafactor import Adafactor
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.task import PriorTask
from vqim.runtime.torch import TorchRuntime
from vqim.state.leaf import select
from vqim.tokenizer.pretrained import Pretrained
from vqim.training.state import start

RUNTIME = TorchRuntime()


@pytest.fixture
def make_task(pretrained):
    """`make_task(...)`: a tiny prior over 2x2 tokens of 16, three classes."""
    def make(dropout_rate=0.0, num_classes=3, optimizer=None, **kwargs):
        def make_prior(grid, num_classes):
            return AutoregressivePrior(grid, num_classes, width=16, num_layers=2, num_heads=2, hidden=32,
                                       dropout_rate=dropout_rate)
        return PriorTask(pretrained, make_prior, optimizer or AdamW(), Constant(1e-2), num_classes, **kwargs)
    return make


def make_state(task):
    return start(task.init_spec(), 0, RUNTIME).arrays


def make_noisy_state(task):
    """A state in which blocks do something: they begin as the identity."""
    state, generator = make_state(task), torch.Generator().manual_seed(0)
    for name, array in state.items():
        if name.startswith("params/prior/"):
            array += 0.3 * torch.randn(array.shape, generator=generator)
    return state


def make_batch(batch_size=6):
    rng = np.random.default_rng(0)
    return RUNTIME.put({"images": rng.integers(0, 256, (batch_size, 8, 8, 3), np.uint8),
                        "labels": np.arange(batch_size, dtype=np.int32) % 3})


def run_step(task, state, batch, step=0, seed=0):
    scalars = RUNTIME.scalars({**task.host_scalars(step), "step": step, "seed": seed})
    return task.train_step(state, batch, scalars, RUNTIME.kernels)


@pytest.mark.parametrize("num_micro_batches", [2, 3])
def test_micro_batches_give_the_update_of_the_whole_batch(make_task, num_micro_batches):
    states, shown = [], []
    for count in (1, num_micro_batches):
        task = make_task(num_micro_batches=count)
        states.append(make_noisy_state(task))
        shown.append(run_step(task, states[-1], make_batch()))
    for name, value in shown[0].items():
        assert shown[1][name].item() == pytest.approx(value.item(), rel=1e-3), name
    for name, first_moment in states[0].items():  # a tenth of the gradient
        if name.startswith("optimizer/prior/m/"):
            assert (states[1][name] - first_moment).norm() <= 1e-5 * first_moment.norm() + 1e-8, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_are_the_tokenizers_in_float32(make_task, tokenizer, draw_params, context, dtype):
    task, batch = make_task(dtype=dtype), make_batch(300)
    params, images = draw_params(tokenizer), batch["images"].permute(0, 3, 1, 2) / 255
    expected = apply(tokenizer.tokens, params, images, context)
    rounded = apply(tokenizer.tokens, params, images, dataclasses.replace(context, dtype=torch.bfloat16))
    assert not torch.equal(rounded, expected)
    assert torch.equal(task.tokens(make_state(task), batch, RUNTIME.kernels), expected)


def test_tokens_of_a_cache_are_taken_as_they_are(make_task):
    task = make_task()
    cached = torch.randint(16, (6, 4, 1), dtype=torch.int32)
    tokens = task.tokens(make_state(task), {"tokens": cached}, RUNTIME.kernels)
    assert tokens.dtype == torch.int64 and torch.equal(tokens, cached.long())


def test_pictures_of_tokens_are_the_tokenizers(make_task, tokenizer, draw_params, context):
    task, tokens = make_task(), torch.randint(16, (6, 4, 1))
    expected = apply(tokenizer.images, draw_params(tokenizer), tokens, context)
    assert torch.equal(task.images(make_state(task), tokens, RUNTIME.kernels), expected)


def test_the_loss_is_the_priors_and_bits_are_nats_over_log_2(make_task, context):
    task, batch = make_task(), make_batch()
    state = make_noisy_state(task)
    tokens = task.tokens(state, batch, RUNTIME.kernels)
    params = {name: array.clone() for name, array in select(state, "params/prior/").items()}
    expected = apply(task.prior.loss, params, tokens, batch["labels"], context).item()
    metrics = run_step(task, state, batch)
    assert metrics["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert metrics["loss/bits_per_token"].item() == pytest.approx(expected / math.log(2), rel=1e-6)


def test_a_batch_is_memorised_while_the_tokenizer_stays_as_it_was(make_task, tokenizer, draw_params):
    task, batch = make_task(), make_batch()
    state = make_state(task)
    history = [run_step(task, state, batch, step)["loss"].item() for step in range(60)]
    assert history[0] == pytest.approx(math.log(16), rel=0.1)
    # Six pictures of three classes: what is left is which of the two of a class it is, at most log(2) / 4 a token.
    assert history[-1] < math.log(2) / 4 + 0.1
    frozen = select(state, "frozen/tokenizer/")
    params = draw_params(tokenizer)
    assert frozen.keys() == params.keys() and all(torch.equal(frozen[name], params[name]) for name in params)
    tokens = task.tokens(state, batch, RUNTIME.kernels)
    likeliest = task.logits(state, tokens, batch["labels"], RUNTIME.kernels).argmax(-1)
    assert (likeliest[:, -1] == tokens[:, -1, 0]).all()


def test_no_optimizer_knows_the_tokenizer(make_task):
    names = [name for name in make_task().init_spec() if name.startswith("optimizer/")]
    assert names and all(name.startswith("optimizer/prior/") for name in names)


def test_every_parameter_learns(make_task):
    task, batch = make_task(), make_batch()
    state = make_noisy_state(task)
    before = {name: array.clone() for name, array in state.items()}
    run_step(task, state, batch)
    for name in task.init_spec():
        if name.startswith("params/") and not name.endswith("attention/key/bias_O"):  # which softmax ignores
            assert not torch.equal(state[name], before[name]), name


def test_logits_are_float32_and_without_dropout(make_task):
    tokens, labels = torch.randint(16, (2, 4, 1)), torch.tensor([0, 1])
    with_dropout, without = (
        task.logits(make_noisy_state(task), tokens, labels, RUNTIME.kernels)
        for task in (make_task(dropout_rate=0.9, dtype="bfloat16"), make_task(dropout_rate=0.0, dtype="bfloat16")))
    assert with_dropout.dtype == torch.float32 and with_dropout.shape == (2, 4, 16)
    assert torch.equal(with_dropout, without)


def test_a_step_is_a_function_of_state_batch_step_and_seed(make_task):
    task, batch = make_task(dropout_rate=0.2), make_batch()

    def loss(step, seed):
        return run_step(task, make_noisy_state(task), batch, step, seed)["loss"].item()

    assert loss(3, 7) == loss(3, 7)
    assert len({loss(3, 7), loss(4, 7), loss(3, 8)}) == 3


@pytest.mark.parametrize("optimizer", [AdamW(), Adafactor(min_factored_size=8)], ids=["AdamW", "Adafactor int8"])
def test_a_value_that_is_not_finite_changes_nothing_ever_after(make_task, optimizer):
    task, batch = make_task(optimizer=optimizer), make_batch()
    state = make_noisy_state(task)
    run_step(task, state, batch, 4)
    healthy = state["params/prior/head/bias_O"][2].item()
    state["params/prior/head/bias_O"][2] = math.nan
    before = {name: array.clone() for name, array in state.items()}
    run_step(task, state, batch, 5)
    # Nothing that int8 cannot say may hide in the moments, also when the cause has gone.
    for arrays in (state, before):
        arrays["params/prior/head/bias_O"][2] = healthy
    run_step(task, state, batch, 6)
    changed = {name for name in state if not torch.equal(state[name], before[name])}
    assert changed == {"health/first_bad_step", "health/is_bad"}
    assert state["health/first_bad_step"].item() == 5


def test_gradients_are_scaled_down_to_their_largest_norm(make_task):
    batch, norms = make_batch(), []
    for limit in (None, 1e-3):
        task = make_task(max_gradient_norm=limit)
        state = make_noisy_state(task)
        norms.append(run_step(task, state, batch)["gradient_norm"].item())
        first_moments = [array for name, array in state.items() if name.startswith("optimizer/prior/m/")]
        seen = math.sqrt(sum((array.double() / 0.1).square().sum() for array in first_moments))  # m = (1 - beta1) g
        assert seen == pytest.approx(limit or norms[0], rel=1e-4)
    assert norms[0] == norms[1] > 0.1


def test_the_description_counts_both_networks(make_task):
    counts = make_task().describe()
    block = 4 * (16 * 16 + 16) + (16 * 32 + 32) + (32 * 16 + 16) + 4 * 16
    assert counts["prior"] == 2 * block + (4 + 16 + 4) * 16 + 2 * 16 + (16 * 16 + 16)
    assert set(counts) == {"prior", "tokenizer (frozen)"}


def make_data(**kwargs):
    return SimpleNamespace(**{"image_size": 8, "num_classes": 3, **kwargs})


def test_data_with_other_classes_or_sizes_are_refused(make_task):
    make_task().check_data(make_data())
    make_task(num_classes=0).check_data(make_data())
    with pytest.raises(ValueError, match="num_classes must be the data's 5, or 0 to ignore them; got 3"):
        make_task().check_data(make_data(num_classes=5))
    with pytest.raises(ValueError, match="image_size of the data must be the tokenizer's 8, got 16"):
        make_task().check_data(make_data(image_size=16))


def test_a_token_cache_is_asked_who_wrote_it(make_task, pretrained):
    asked = []
    make_task().check_data(make_data(check_written_by=lambda *arguments: asked.append(arguments)))
    assert asked == [([[2, 2, 1, 16]], pretrained.fingerprint())]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"dtype": "float64"}, r"dtype must be one of \['bfloat16', 'float32'\], got 'float64'"),
    ({"max_gradient_norm": -1.0}, "max_gradient_norm must be positive or None, got -1.0")])
def test_impossible_settings_are_refused(make_task, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_task(**arguments)


def test_a_network_that_is_no_tokenizer_is_refused():
    with pytest.raises(TypeError, match="tokenizer must be a pretrained ImageTokenizer, got Dense"):
        PriorTask(Pretrained(Dense(2, 2), "runs/x"), AutoregressivePrior, AdamW(), Constant(1e-3), 0)
