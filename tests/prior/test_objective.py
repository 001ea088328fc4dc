"""Stage 2: the tokenizer's tokens, a tokenizer that stays frozen, a loss that falls, and what evaluators are told."""
import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.steps import CONTEXT, RUNTIME, make_noisy_state, make_state, run_step
from vqim.contracts.context import Context
from vqim.contracts.learning import Learner
from vqim.frozen.from_run import FromRun
from vqim.nn.layers import Dense
from vqim.nn.module import apply, parameter
from vqim.optim.adafactor import Adafactor
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.objective import PriorObjective
from vqim.prior.sampler import StepwiseSampler
from vqim.state import init
from vqim.state.leaf import select
from vqim.training.gradient_task import GradientTask

ROUGH = Context(RUNTIME.kernels, torch.bfloat16)


@pytest.fixture
def make_task(pretrained):
    """`make_task(...)`: a tiny prior over 2x2 tokens of 16, three classes."""
    def make(dropout_rate=0.0, num_classes=3, optimizer=None, dtype="float32", prior=None, **kwargs):
        prior = prior or functools.partial(
            AutoregressivePrior, width=16, num_layers=2, num_heads=2, hidden=32, dropout_rate=dropout_rate)
        learner = functools.partial(
            Learner, optimizer=optimizer or AdamW(), learning_rate=Constant(1e-2), **kwargs)
        return GradientTask(PriorObjective(pretrained, prior, learner, num_classes), dtype=dtype)
    return make


def make_batch(batch_size=6):
    rng = np.random.default_rng(0)
    return RUNTIME.put({"images": rng.integers(0, 256, (batch_size, 8, 8, 3), np.uint8),
                        "labels": np.arange(batch_size, dtype=np.int32) % 3, "valid": np.ones(batch_size, bool)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_the_tokenizers_in_float32(make_task, tokenizer, draw_params, dtype):
    task, batch = make_task(), make_batch(300)
    params, images = draw_params(tokenizer), batch["images"].permute(0, 3, 1, 2) / 255
    expected = apply(tokenizer.tokens, params, images, CONTEXT)
    assert not torch.equal(apply(tokenizer.tokens, params, images, ROUGH), expected)
    tokens = task.objective.tokens(make_state(task), batch, Context(RUNTIME.kernels, dtype))
    assert torch.equal(tokens, expected)


def test_the_evaluation_dtype_is_the_tokenizers_own(make_task, tokenizer, draw_params):
    task, batch = make_task(), make_batch(300)
    params, images = draw_params(tokenizer), batch["images"].permute(0, 3, 1, 2) / 255
    context = Context(RUNTIME.kernels, evaluation_dtype=torch.bfloat16)
    tokens = task.objective.tokens(make_state(task), batch, context)
    assert torch.equal(tokens, apply(tokenizer.tokens, params, images, ROUGH))
    found = task.objective.images(make_state(task), tokens, context)
    assert torch.equal(found, (apply(tokenizer.images, params, tokens, ROUGH) * 255).round() / 255)


def test_tokens_of_a_cache_are_taken_as_they_are(make_task):
    task = make_task()
    cached = torch.randint(16, (6, 4, 1), dtype=torch.int32)
    tokens = task.objective.tokens(make_state(task), {"tokens": cached}, CONTEXT)
    assert tokens.dtype == torch.int64 and torch.equal(tokens, cached.long())


@pytest.mark.parametrize("context", [CONTEXT, ROUGH], ids=["float32", "bfloat16"])
def test_images_of_tokens_are_the_tokenizers_in_float32_rounded_to_8_bits(
        make_task, tokenizer, draw_params, context):
    task, tokens = make_task(), torch.randint(16, (6, 4, 1))
    exact = apply(tokenizer.images, draw_params(tokenizer), tokens, CONTEXT)
    found = task.objective.images(make_state(task), tokens, context)
    assert torch.equal(found, (exact * 255).round() / 255) and not torch.equal(found, exact)


def test_the_loss_is_the_priors_and_bits_are_nats_over_log_2(make_task):
    task, batch = make_task(), make_batch()
    state = make_noisy_state(task, "params/prior/")
    tokens = task.objective.tokens(state, batch, CONTEXT)
    params = {name: array.clone() for name, array in select(state, "params/prior/").items()}
    losses = apply(task.objective.prior.token_losses, params, tokens, batch["labels"], CONTEXT)
    expected = losses.double().mean().item()
    metrics = run_step(task, state, batch)
    assert metrics["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert metrics["loss/bits_per_token"].item() == pytest.approx(expected / math.log(2), rel=1e-6)


def test_a_batch_is_memorised_while_the_tokenizer_stays_as_it_was(make_task, tokenizer, draw_params):
    task, batch = make_task(), make_batch()
    state = make_state(task)
    history = [run_step(task, state, batch, step)["loss"].item() for step in range(60)]
    assert history[0] == pytest.approx(math.log(16), rel=0.1)
    # Six images of three classes: what is left is which of the two of a class it is, at most log(2) / 4 a token.
    assert history[-1] < math.log(2) / 4 + 0.1
    frozen = select(state, "frozen/tokenizer/")
    params = draw_params(tokenizer)
    assert frozen.keys() == params.keys() and all(torch.equal(frozen[name], params[name]) for name in params)
    tokens = task.objective.tokens(state, batch, CONTEXT)
    prior, arrays = task.objective.prior, task.objective.prior_arrays(state)
    likeliest = apply(prior.expected, arrays, tokens, batch["labels"], CONTEXT)
    assert (likeliest[:, -1] == tokens[:, -1]).all()


def test_no_optimizer_knows_the_tokenizer(make_task):
    names = [name for name in make_task().init_spec() if name.startswith("optimizer/")]
    assert names and all(name.startswith("optimizer/prior/") for name in names)


def test_every_parameter_learns(make_task):
    task, batch = make_task(), make_batch()
    state = make_noisy_state(task, "params/prior/")
    before = {name: array.clone() for name, array in state.items()}
    run_step(task, state, batch)
    for name in task.init_spec():
        if name.startswith("params/") and not name.endswith("attention/key/bias_O"):  # which softmax ignores
            assert not torch.equal(state[name], before[name]), name


def test_a_step_is_a_function_of_state_batch_step_and_seed(make_task):
    task, batch = make_task(dropout_rate=0.2), make_batch()

    def loss(step, seed):
        return run_step(task, make_noisy_state(task, "params/prior/"), batch, step, seed)["loss"].item()

    assert loss(3, 7) == loss(3, 7)
    assert len({loss(3, 7), loss(4, 7), loss(3, 8)}) == 3


@pytest.mark.parametrize("optimizer", [AdamW(), Adafactor(min_factored_size=8)], ids=["AdamW", "Adafactor int8"])
def test_a_value_that_is_not_finite_changes_nothing_ever_after(make_task, optimizer):
    task, batch = make_task(optimizer=optimizer), make_batch()
    state = make_noisy_state(task, "params/prior/")
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


def test_reconstructions_are_the_frozen_tokenizers_in_float32_rounded_to_8_bits(make_task, tokenizer, draw_params):
    task, batch = make_task(), make_batch()
    items = task.objective.reconstruct(make_state(task), batch, ROUGH)
    images = batch["images"].permute(0, 3, 1, 2) / 255
    quantized, reconstruction = apply(tokenizer.forward, draw_params(tokenizer), images, CONTEXT)
    assert torch.equal(items.originals_BCHW, images)
    assert torch.equal(items.images_BCHW, (reconstruction.mean_BCHW.clamp(0, 1) * 255).round() / 255)
    assert torch.equal(items.tokens_BNK, quantized.indices[0].reshape(6, 4, 1))
    assert torch.equal(items.labels_B, batch["labels"].long()) and items.labels_B.dtype == torch.int64


def test_predictions_are_images_of_the_expected_tokens_beside_those_of_the_true_ones(make_task):
    task, batch = make_task(), make_batch()
    state, objective = make_noisy_state(task, "params/prior/"), task.objective
    items = objective.predict(state, batch, CONTEXT)
    tokens = objective.tokens(state, batch, CONTEXT)
    params = select(state, "params/prior/")
    logits = apply(objective.prior.forward, params, tokens, batch["labels"], CONTEXT)
    assert torch.equal(items.tokens_BNK, tokens)
    assert torch.equal(items.originals_BCHW, objective.images(state, tokens, CONTEXT))
    assert torch.equal(items.images_BCHW, objective.images(state, logits.argmax(-1, keepdim=True), CONTEXT))
    assert not torch.equal(items.images_BCHW, items.originals_BCHW)
    nats = F.cross_entropy(logits.transpose(1, 2), tokens[..., 0], reduction="none")
    torch.testing.assert_close(items.measures["bits_per_token"], nats.mean(1) / math.log(2))


def test_predictions_are_without_dropout_and_their_measures_float32(make_task):
    with_dropout, without = (
        task.objective.predict(make_noisy_state(task, "params/prior/"), make_batch(), ROUGH).measures["bits_per_token"]
        for task in (make_task(dropout_rate=0.9), make_task(dropout_rate=0.0)))
    assert with_dropout.dtype == torch.float32 and torch.equal(with_dropout, without)


def test_predictions_are_those_of_the_averaged_parameters_where_these_are_kept(make_task):
    task, batch = make_task(ema_decay=0.9), make_batch()
    state = make_noisy_state(task, "params/prior/")
    for name, array in select(state, "params/prior/").items():
        state[f"ema/prior/{name}"].copy_(-array)
    found = task.objective.predict(state, batch, CONTEXT).measures["bits_per_token"]
    plain = make_task()
    averages = {f"params/prior/{name}": array for name, array in select(state, "ema/prior/").items()}
    expected = plain.objective.predict({**make_state(plain), **averages}, batch, CONTEXT).measures["bits_per_token"]
    own = plain.objective.predict(make_noisy_state(plain, "params/prior/"), batch, CONTEXT).measures["bits_per_token"]
    assert torch.equal(found, expected) and not torch.equal(found, own)


class Unigram(nn.Module):
    """A prior that knows no other token and no class, and draws nothing: what a prior has to have, and no more."""

    def __init__(self, grid, num_classes):
        super().__init__()
        self.grid, self.num_classes = grid, num_classes
        self.logits_V = parameter((grid.levels[0].vocabulary,), init.Constant(0.0), "features")

    def loss(self, tokens_BNK, labels_B, context):
        return -self.logits_V.log_softmax(0)[tokens_BNK].mean(), {}

    def measure(self, tokens_BNK, labels_B, context):
        return {"bits_per_token": -self.logits_V.log_softmax(0)[tokens_BNK].mean((1, 2)) / math.log(2)}


def test_a_prior_without_expected_tokens_is_trained_and_measured_without_images(make_task):
    task, batch = make_task(prior=Unigram), make_batch()
    state = make_state(task)
    assert run_step(task, state, batch)["loss"].item() == pytest.approx(math.log(16))
    items = task.objective.predict(state, batch, CONTEXT)
    assert items.images_BCHW is None and items.originals_BCHW is not None
    assert items.measures["bits_per_token"].shape == (6,) and items.measures["bits_per_token"].mean() < 4


def test_a_priors_sampler_is_the_one_that_is_given(pretrained):
    learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(1e-2))
    assert PriorObjective(pretrained, Unigram, learner, 3).sampler == StepwiseSampler()
    chosen = StepwiseSampler(temperature=0.5)
    assert PriorObjective(pretrained, Unigram, learner, 3, chosen).sampler is chosen


def test_the_description_counts_both_networks(make_task):
    counts = make_task().describe()
    block = 4 * (16 * 16 + 16) + (16 * 32 + 32) + (32 * 16 + 16) + 4 * 16
    assert counts["prior"] == 2 * block + (4 + 16 + 4) * 16 + 2 * 16 + (16 * 16 + 16)
    assert set(counts) == {"prior", "tokenizer (frozen)"}


def make_data(**kwargs):
    return SimpleNamespace(**{"image_size": 8, "num_classes": 3, **kwargs})


def test_data_with_other_classes_or_sizes_are_refused(make_task):
    make_task().objective.check_data(make_data())
    make_task(num_classes=0).objective.check_data(make_data())
    with pytest.raises(ValueError, match="num_classes must be the data's 5, or 0 to ignore them; got 3"):
        make_task().objective.check_data(make_data(num_classes=5))
    with pytest.raises(ValueError, match="image_size of the data must be the tokenizer's 8, got 16"):
        make_task().objective.check_data(make_data(image_size=16))


def test_cached_tokens_of_another_grid_are_refused(make_task):
    make_task().objective.check_data(make_data(levels=[(2, 2, 1, 16)]))
    with pytest.raises(ValueError, match=r"the token cache must have the tokenizer's grid \[\[2, 2, 1, 16\]\]"):
        make_task().objective.check_data(make_data(levels=[(2, 2, 1, 32)]))


def test_a_token_cache_is_asked_who_wrote_it(make_task, pretrained, tokenizer):
    asked = []
    make_task().objective.check_tokens(
        make_data(check_written_by=lambda *arguments: asked.append(arguments)), read=None)
    assert asked == [([[2, 2, 1, 16]], pretrained.fingerprint(tokenizer.deciding_arrays()))]


def test_a_network_that_is_no_tokenizer_is_refused():
    learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(1e-3))
    with pytest.raises(TypeError, match="tokenizer must be an ImageTokenizer of another run, got Dense"):
        PriorObjective(FromRun(Dense(2, 2), "runs/x"), AutoregressivePrior, learner, 0)
