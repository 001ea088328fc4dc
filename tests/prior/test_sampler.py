"""The sampler: its draws beside the whole sequence's logits and joint distribution; numbers, given codes, guidance."""
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.runtime.several_hosts import together
from vqim.contracts.grid import Level, TokenGrid
from vqim.nn.module import apply
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.sampler import StepwiseSampler
from vqim.runtime.torch import TorchRuntime

RUNTIME = TorchRuntime()
LABELS = np.array([0, 1, 2, 3, -1], np.int32)


def without_biases(params):
    """Those at the end would have all positions say the same."""
    return params | {name: torch.zeros_like(params[name]) for name in ("norm/bias_D", "head/bias_O")}


def guided_logits(prior, params, tokens, labels, scale, context):
    """c + (s - 1) (c - u), of whole sequences in float64."""
    told = apply(prior.forward, params, tokens, torch.as_tensor(labels), context).double().numpy()
    untold = apply(prior.forward, params, tokens, None, context).double().numpy()
    return told + (scale - 1) * (told - untold)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 1}])
@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.5])
def test_greedy_tokens_are_the_likeliest_of_the_whole_sequences_logits(
        make_prior, draw_params, sample_tokens, context, settings, guidance):
    prior = make_prior()
    params = without_biases(draw_params(prior))
    tokens = sample_tokens(prior, params, LABELS, guidance=guidance, **settings)
    assert tokens.shape == (5, 6, 1) and tokens.dtype == torch.int64
    logits = guided_logits(prior, params, tokens, LABELS, guidance, context)
    np.testing.assert_array_equal(tokens[..., 0], logits.argmax(-1))
    num_different = len(tokens.unique(dim=0))
    assert num_different > 1 and len(tokens.unique()) > 2 if guidance else num_different == 1


def joint_probabilities(prior, params, label, context, temperature, guidance):
    """P(x | label) of every sequence of two tokens, by the chain rule on the whole sequence's logits."""
    sequences = torch.tensor(list(itertools.product(range(prior.vocabulary), repeat=2)))
    labels = torch.full((len(sequences),), label)
    logits = guided_logits(prior, params, sequences[..., None], labels, guidance, context) / temperature
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return np.take_along_axis(probabilities, sequences[..., None].numpy(), -1)[..., 0].prod(1)


@pytest.mark.parametrize(("temperature", "guidance"), [(1.0, 1.0), (0.7, 1.0), (1.0, 2.0), (1.5, 3.0)])
def test_sequences_are_drawn_from_the_models_joint_distribution(
        make_prior, draw_params, sample_tokens, context, temperature, guidance):
    prior = make_prior(height=1, width=2, vocabulary=3, num_classes=2)
    params, labels = without_biases(draw_params(prior)), np.arange(6000, dtype=np.int32) % 3 - 1
    params["head/kernel_IO"] = 2 * params["head/kernel_IO"]
    tokens = sample_tokens(prior, params, labels, temperature=temperature, guidance=guidance)[..., 0].numpy()
    for label in (-1, 0, 1):
        rows = tokens[labels == label]
        counts = np.bincount(rows[:, 0] * 3 + rows[:, 1], minlength=9)
        probabilities = joint_probabilities(prior, params, label, context, temperature, guidance)
        assert probabilities.sum() == pytest.approx(1, abs=1e-5) and probabilities.max() > 2 * probabilities.min()
        expected = len(rows) * probabilities
        assert ((counts - expected) ** 2 / expected).sum() < 8 + 5 * math.sqrt(2 * 8)
        plain = len(rows) * joint_probabilities(prior, params, label, context, 1.0, 1.0)
        if label >= 0 and (temperature, guidance) != (1.0, 1.0):  # which the test can tell from it
            assert ((counts - plain) ** 2 / plain).sum() > 8 + 5 * math.sqrt(2 * 8)


class Recorder(AutoregressivePrior):
    """A prior that notes how many sequences it looks at in each step."""

    sizes: list[int]

    def step(self, drawn_BS, labels_B, cache, step, context):
        self.sizes.append(len(drawn_BS))
        return super().step(drawn_BS, labels_B, cache, step, context)


@pytest.mark.parametrize(("settings", "num_branches"), [
    ({}, 1), ({"guidance": 1.0}, 1), ({"guidance": 1.5}, 2), ({"guidance": 0.0}, 2)])
def test_guidance_looks_at_each_image_twice_and_a_scale_of_one_does_not(
        draw_params, sample_tokens, settings, num_branches):
    prior = Recorder(TokenGrid((Level(2, 3, 1, 11),)), 4, width=8, num_layers=1, num_heads=2, hidden=8)
    prior.sizes = []
    sample_tokens(prior, draw_params(prior), LABELS, **settings)
    assert prior.sizes == 6 * [5 * num_branches]


def test_untold_classes_are_not_guided(make_prior, draw_params, sample_tokens):
    prior = make_prior()
    params = draw_params(prior)
    assert torch.equal(sample_tokens(prior, params, [-1] * 5, guidance=4.0), sample_tokens(prior, params, [-1] * 5))


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(make_prior, draw_params, sample_tokens):
    prior = make_prior()
    params, labels = draw_params(prior), np.zeros(8, np.int32)
    first = sample_tokens(prior, params, labels, seed=0)
    assert torch.equal(sample_tokens(prior, params, labels, seed=0), first)
    assert not torch.equal(sample_tokens(prior, params, labels, seed=1), first)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_an_image_is_drawn_by_its_number_whatever_the_batch(make_prior, draw_params, sample_tokens, guidance):
    prior = make_prior()
    params, labels = draw_params(prior), np.arange(12) % 5 - 1
    together_12 = sample_tokens(prior, params, labels, seed=3, guidance=guidance)
    assert len(together_12.unique(dim=0)) == 12
    for numbers in ([7], [11, 0, 3], [4, 5, 6, 7, 8]):
        alone = sample_tokens(prior, params, labels[numbers], seed=3, numbers=numbers, guidance=guidance)
        assert torch.equal(alone, together_12[numbers])


def test_images_of_one_class_differ_by_their_numbers_alone(make_prior, draw_params, sample_tokens):
    prior = make_prior()
    tokens = sample_tokens(prior, draw_params(prior), [2, 2, 2, 2], numbers=[5, 9, 5, 10])
    assert torch.equal(tokens[0], tokens[2])
    assert len(tokens.unique(dim=0)) == 3


def test_given_codes_stay_and_the_others_are_drawn_given_them(make_prior, draw_params, sample_tokens, context):
    prior = make_prior()
    params = without_biases(draw_params(prior))
    given = np.full((5, 6, 1), -1, np.int64)
    given[0, :4], given[1, 0], given[2, 5], given[3] = 3, 8, 9, 2
    before = given.copy()
    tokens = sample_tokens(prior, params, LABELS, given=given, temperature=0.0)
    likeliest = apply(prior.forward, params, tokens, torch.from_numpy(LABELS), context).argmax(-1, keepdim=True)
    np.testing.assert_array_equal(tokens, np.where(given >= 0, given, likeliest))
    assert (tokens.numpy() != likeliest.numpy())[given >= 0].any()
    np.testing.assert_array_equal(given, before)


def test_codes_are_drawn_again_where_the_others_of_an_image_are_given(make_prior, draw_params, sample_tokens):
    prior = make_prior()
    params = draw_params(prior)
    tokens = sample_tokens(prior, params, LABELS)
    given = tokens.numpy().copy()
    given[np.random.default_rng(0).random(given.shape) < 0.5] = -1
    assert torch.equal(sample_tokens(prior, params, LABELS, given=given), tokens)


def test_given_codes_of_another_shape_are_refused(make_prior, draw_params, sample_tokens):
    prior = make_prior()
    with pytest.raises(ValueError, match=r"given_BNK must have shape \(5, 6, 1\), -1 where .*; got \(5, 6\)"):
        sample_tokens(prior, draw_params(prior), LABELS, given=np.zeros((5, 6), np.int64))


class Counting(nn.Module):
    """A prior of two codes a position that is sure of code s in step s."""

    grid, num_classes, num_steps, vocabulary = TokenGrid((Level(1, 3, 2, 8),)), 0, 6, 8

    def empty_cache(self, batch_size, dtype, device, kernels):
        return {"steps": torch.zeros(1, batch_size, 6, dtype=dtype, device=device)}

    def step(self, drawn_BS, labels_B, cache, step, context):
        return torch.where(torch.arange(8) == step, 100.0, 0.0).expand(len(drawn_BS), 8)


def test_a_positions_codes_are_drawn_one_after_the_other(sample_tokens):
    assert sample_tokens(Counting(), {}, [-1, -1]).tolist() == 2 * [[[0, 1], [2, 3], [4, 5]]]


def test_dropout_does_not_touch_samples(make_prior, draw_params, sample_tokens):
    draws = [sample_tokens(prior, draw_params(prior), np.zeros(4, np.int32))
             for prior in (make_prior(dropout_rate=0.0), make_prior(dropout_rate=0.9, class_dropout_rate=0.9))]
    assert torch.equal(*draws)


def test_bfloat16_draws_tokens_of_the_vocabulary(make_prior, draw_params, sample_tokens):
    prior = make_prior()
    tokens = sample_tokens(prior, draw_params(prior), np.zeros(50, np.int32), dtype=torch.bfloat16)
    assert tokens.min() >= 0 and 5 < tokens.max() < 11


def test_labels_or_numbers_of_another_number_are_refused(make_prior, draw_params):
    prior = make_prior()
    draw, params = StepwiseSampler().bind(prior, RUNTIME, 4, torch.float32), draw_params(prior)
    with pytest.raises(ValueError, match=r"labels_B must have shape \(4,\), got \(3,\)"):
        draw(params, np.zeros(3, np.int32), np.arange(4), 0)
    with pytest.raises(ValueError, match=r"numbers_B must have shape \(4,\), got \(5,\)"):
        draw(params, np.zeros(4, np.int32), np.arange(5), 0)


@pytest.mark.parametrize(("settings", "message"), [
    ({"top_k": 0}, "top_k must be at least 1 or None, got 0"),
    ({"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
    ({"guidance": -0.5}, "guidance must be at least 0, got -0.5"),
    ({"guidance": math.nan}, "guidance must be at least 0, got nan")])
def test_settings_out_of_range_are_refused_before_sampling(settings, message):
    with pytest.raises(ValueError, match=message):
        StepwiseSampler(**settings)
    with pytest.raises(ValueError, match=message):
        StepwiseSampler().with_settings(**settings)


def test_other_settings_leave_the_rest_as_it_was():
    sampler = StepwiseSampler(temperature=0.5, top_k=3)
    assert sampler.with_settings(top_k=None, guidance=2.0) == StepwiseSampler(temperature=0.5, guidance=2.0)


def test_settings_that_a_sampler_does_not_have_are_refused_by_name():
    with pytest.raises(ValueError, match="num_steps, tempo: StepwiseSampler has no such setting; it has temperature, "):
        StepwiseSampler().with_settings(tempo=1.0, num_steps=8, top_k=2)


def test_a_batch_that_the_devices_cannot_share_is_refused(make_prior):
    class FourDevices(TorchRuntime):
        num_batch_shards = 4

    with pytest.raises(ValueError, match="batch_size must be a multiple of 4, got 6"):
        StepwiseSampler().bind(make_prior(), FourDevices(), 6, torch.float32)


def test_guidance_of_a_prior_without_classes_is_refused(make_prior):
    with pytest.raises(ValueError, match=r"guidance must be 1\.0 for a prior without classes, got 2\.0"):
        StepwiseSampler(guidance=2.0).bind(make_prior(num_classes=0), RUNTIME, 4, torch.float32)


def test_a_prior_that_cannot_be_drawn_from_step_by_step_is_refused():
    with pytest.raises(ValueError, match="draws code by code, and Linear has no num_steps, vocabulary, empty_cache, "):
        StepwiseSampler().bind(nn.Linear(2, 2), RUNTIME, 4, torch.float32)


def test_several_processes_draw_what_one_draws_each_with_its_share_of_the_labels(
        make_prior, draw_params, sample_tokens):
    prior = make_prior()
    params, labels = draw_params(prior), np.array([0, 1, 2, 3, -1, 2], np.int32)
    runtimes, drawn = together(3, lambda runtime: sample_tokens(prior, params, labels, seed=4, runtime=runtime))
    assert all(torch.equal(tokens, sample_tokens(prior, params, labels, seed=4)) for tokens in drawn)
    assert [runtime.loaded[0]["labels"].tolist() for runtime in runtimes] == [[0, 1], [2, 3], [-1, 2]]
