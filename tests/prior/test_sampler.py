"""The sampler: greedy draws agree with the whole sequence's logits, random ones with its joint distribution."""
import itertools
import math

import numpy as np
import pytest
import torch

from tests.runtime.several_hosts import together
from vqim.nn.module import apply
from vqim.prior.sampler import Sampler
from vqim.runtime.torch import TorchRuntime

RUNTIME = TorchRuntime()


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 1}])
def test_greedy_tokens_are_the_likeliest_of_the_whole_sequences_logits(make_prior, draw_params, context, settings):
    prior = make_prior()
    params, labels = draw_params(prior), np.array([0, 1, 2, 3, -1], np.int32)
    for name in ("norm/bias_D", "head/bias_O"):  # which would have all positions say the same
        params[name] = torch.zeros_like(params[name])
    tokens = Sampler(prior, RUNTIME, 5, **settings)(params, labels, seed=0)
    assert tokens.shape == (5, 6, 1) and tokens.dtype == torch.int64
    logits = apply(prior.forward, params, tokens, torch.from_numpy(labels), context)
    assert torch.equal(tokens[..., 0], logits.argmax(-1))
    assert len({tuple(row) for row in tokens[..., 0].tolist()}) > 1 and len(tokens.unique()) > 2


def joint_probabilities(prior, params, label, context):
    """P(x | label) of every sequence of two tokens, by the chain rule on the whole sequence's logits."""
    sequences = list(itertools.product(range(prior.vocabulary), repeat=2))
    tokens = torch.tensor(sequences)[..., None]
    losses = apply(prior.token_losses, params, tokens, torch.full((len(sequences),), label), context)
    return np.exp(-losses.double().sum(1).numpy())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sequences_are_drawn_from_the_models_joint_distribution(make_prior, draw_params, context, temperature):
    prior = make_prior(height=1, width=2, vocabulary=3, num_classes=2)
    params = draw_params(prior)
    num_rows = 6000
    labels = np.arange(num_rows, dtype=np.int32) % 3 - 1
    tokens = Sampler(prior, RUNTIME, num_rows, temperature=temperature)(params, labels, seed=0)[..., 0].numpy()
    for name in ("head/kernel_IO", "head/bias_O"):  # logits / temperature
        params[name] = params[name] / temperature
    for label in (-1, 0, 1):
        rows = tokens[labels == label]
        counts = np.bincount(rows[:, 0] * 3 + rows[:, 1], minlength=9)
        probabilities = joint_probabilities(prior, params, label, context)
        assert probabilities.sum() == pytest.approx(1, abs=1e-5) and probabilities.max() > 2 * probabilities.min()
        expected = len(rows) * probabilities
        assert ((counts - expected) ** 2 / expected).sum() < 8 + 5 * math.sqrt(2 * 8)


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(make_prior, draw_params):
    prior = make_prior()
    params, labels = draw_params(prior), np.zeros(8, np.int32)
    sampler = Sampler(prior, RUNTIME, 8)
    first = sampler(params, labels, seed=0)
    assert torch.equal(sampler(params, labels, seed=0), first)
    assert not torch.equal(sampler(params, labels, seed=1), first)


def test_dropout_does_not_touch_samples(make_prior, draw_params):
    labels = np.zeros(4, np.int32)
    draws = [Sampler(prior, RUNTIME, 4)(draw_params(prior), labels, seed=0)
             for prior in (make_prior(dropout_rate=0.0), make_prior(dropout_rate=0.9, class_dropout_rate=0.9))]
    assert torch.equal(*draws)


def test_bfloat16_draws_tokens_of_the_vocabulary(make_prior, draw_params):
    prior = make_prior()
    tokens = Sampler(prior, RUNTIME, 50, dtype=torch.bfloat16)(draw_params(prior), np.zeros(50, np.int32), seed=0)
    assert tokens.min() >= 0 and 5 < tokens.max() < 11


def test_labels_of_another_number_are_refused(make_prior, draw_params):
    prior = make_prior()
    with pytest.raises(ValueError, match=r"labels_B must have shape \(4,\), got \(3,\)"):
        Sampler(prior, RUNTIME, 4)(draw_params(prior), np.zeros(3, np.int32), seed=0)


def test_settings_out_of_range_are_refused_before_sampling(make_prior):
    with pytest.raises(ValueError, match="top_k must be at least 1 or None, got 0"):
        Sampler(make_prior(), RUNTIME, 4, top_k=0)


def test_a_batch_that_the_devices_cannot_share_is_refused(make_prior):
    class FourDevices(TorchRuntime):
        num_batch_shards = 4

    with pytest.raises(ValueError, match="batch_size must be a multiple of 4, got 6"):
        Sampler(make_prior(), FourDevices(), 6)


def test_several_processes_draw_what_one_draws_each_with_its_share_of_the_labels(make_prior, draw_params):
    prior = make_prior()
    params, labels = draw_params(prior), np.array([0, 1, 2, 3, -1, 2], np.int32)
    runtimes, drawn = together(3, lambda runtime: Sampler(prior, runtime, 6)(params, labels, seed=4))
    assert all(torch.equal(tokens, Sampler(prior, RUNTIME, 6)(params, labels, seed=4)) for tokens in drawn)
    assert [runtime.loaded[0]["labels"].tolist() for runtime in runtimes] == [[0, 1], [2, 3], [-1, 2]]
