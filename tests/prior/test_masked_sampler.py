"""The masked sampler: how many codes each step settles, given codes, and distributions that are known exactly."""
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.runtime.several_hosts import together
from vqim.contracts.grid import Level, TokenGrid
from vqim.nn.module import apply
from vqim.prior.guidance import GuidanceSchedule
from vqim.prior.masked import MaskedPrior
from vqim.prior.masked_sampler import MaskedSampler
from vqim.prior.sampler import StepwiseSampler
from vqim.runtime.torch import TorchRuntime

LABELS = np.array([0, 1, 2, 3, -1], np.int32)
ORDERS = ["confidence", "halton"]


def draw(prior, params, labels, seed=0, *, numbers=None, given=None, runtime=None, **settings):
    """One image for each label, int64 [B, N, K]."""
    labels = np.asarray(labels, np.int32)
    numbers = np.arange(len(labels)) if numbers is None else np.asarray(numbers)
    bound = MaskedSampler(**settings).bind(prior, runtime or TorchRuntime(), len(labels), torch.float32)
    return bound(params, labels, numbers, seed, given)


class Recorder(MaskedPrior):
    """A prior that notes what it sees in each step."""

    seen: list

    def logits(self, tokens_BNK, labels_B, context):
        self.seen.append(tokens_BNK.clone())
        return super().logits(tokens_BNK, labels_B, context)


@pytest.fixture(name="recorder")
def make_recorder():
    prior = Recorder(TokenGrid((Level(4, 4, 2, 11),)), 4, width=8, num_layers=1, num_heads=2, hidden=8)
    prior.seen = []
    return prior


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("schedule", "expected"), [
    ("cosine", [32, 31, 29, 26, 22, 17, 12, 6]), ("linear", [32, 28, 24, 20, 16, 12, 8, 4]),
    ("square", [32, 31, 30, 27, 24, 19, 14, 7]), ("cubic", [32, 31, 30, 29, 28, 24, 18, 10]),
    ("root", [32, 20, 16, 12, 9, 6, 4, 2]), ("arccos", [32, 29, 26, 24, 21, 18, 14, 10])])
def test_each_step_leaves_as_many_masked_codes_as_the_schedule(recorder, draw_params, order, schedule, expected):
    tokens = draw(recorder, draw_params(recorder), LABELS, schedule=schedule, order=order, num_steps=8)
    assert [(seen < 0).sum((1, 2)).tolist() for seen in recorder.seen] == [5 * [count] for count in expected]
    assert tokens.min() >= 0 and tokens.max() < 11
    for before, after in itertools.pairwise([*recorder.seen, tokens]):  # what is settled stays
        assert torch.equal(torch.where(before < 0, before, after), before)


@pytest.mark.parametrize("num_steps", [1, 2, 12])
def test_any_number_of_steps_settles_every_code(recorder, draw_params, num_steps):
    assert draw(recorder, draw_params(recorder), LABELS, num_steps=num_steps).min() >= 0
    assert len(recorder.seen) == num_steps


@pytest.mark.parametrize("order", ORDERS)
def test_given_codes_stay_and_are_seen_in_every_step(recorder, draw_params, order):
    given = np.full((5, 16, 2), -1, np.int64)
    given[0, :9], given[1, 3, 1], given[2], given[4, ::2, 0] = 3, 8, 2, 10
    before = given.copy()
    tokens = draw(recorder, draw_params(recorder), LABELS, given=given, order=order)
    for seen in [*recorder.seen, tokens]:
        np.testing.assert_array_equal(np.where(given >= 0, seen, given), given)
    assert tokens.min() >= 0
    np.testing.assert_array_equal(given, before)
    counts = np.stack([(seen < 0).sum((1, 2)) for seen in recorder.seen])
    unknown = (given < 0).sum((1, 2))
    np.testing.assert_array_equal(counts[0], unknown)
    np.testing.assert_array_equal(counts[4], np.floor(unknown * math.cos(math.pi / 4)))


@pytest.mark.parametrize("settings", [{}, {"order": "halton"}, {"guidance": 2.0}, {"temperature": 0.0}])
def test_a_masked_image_is_drawn_by_its_number_whatever_the_batch(make_masked, draw_params, settings):
    prior = make_masked()
    params, labels = draw_params(prior), np.arange(12) % 5 - 1
    together_12 = draw(prior, params, labels, seed=3, **settings)
    assert len(together_12.unique(dim=0)) > (4 if settings.get("temperature") == 0 else 11)
    for numbers in ([7], [11, 0, 3], [4, 5, 6, 7, 8]):
        alone = draw(prior, params, labels[numbers], seed=3, numbers=numbers, **settings)
        assert torch.equal(alone, together_12[numbers])


def test_places_drawn_one_by_one_have_the_codes_of_all_at_once(make_masked, draw_params, monkeypatch):
    prior = make_masked()
    params, drawn = draw_params(prior), []
    for size in (1, 2**30):
        monkeypatch.setattr("vqim.prior.masked_sampler._PIECE", size)
        drawn.append(draw(prior, params, LABELS))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_of_which_no_keys_can_be_made_is_refused(make_masked, draw_params, seed):
    prior = make_masked()
    with pytest.raises(ValueError, match=r"seed must be at least 0 and below 2\^31"):
        draw(prior, draw_params(prior), LABELS, seed)


def test_a_seed_may_be_of_numpy(make_masked, draw_params):
    prior = make_masked()
    params = draw_params(prior)
    assert torch.equal(draw(prior, params, LABELS, np.int64(3)), draw(prior, params, LABELS, 3))


def test_another_seed_draws_other_codes(make_masked, draw_params):
    prior = make_masked()
    params = draw_params(prior)
    one, again, other = (draw(prior, params, LABELS, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_several_processes_draw_what_one_draws(make_masked, draw_params):
    prior = make_masked()
    params, labels = draw_params(prior), np.array([0, 1, 2, 3, -1, 2], np.int32)
    given = np.full((6, 6, 2), -1, np.int64)
    given[1, :4] = given[5, 2] = 1
    for settings in ({}, {"order": "halton"}):
        _, drawn = together(3, lambda runtime, settings=settings: draw(
            prior, params, labels, seed=4, given=given, runtime=runtime, **settings))
        assert all(torch.equal(tokens, draw(prior, params, labels, seed=4, given=given, **settings))
                   for tokens in drawn)


class Known(nn.Module):
    """A prior with a known joint distribution of three binary codes, whose conditionals it gives exactly."""

    grid, num_classes = TokenGrid((Level(1, 3, 1, 2),)), 0

    def __init__(self, joint):
        super().__init__()
        self.joint = torch.as_tensor(joint).reshape(-1)

    def logits(self, tokens_BNK, labels_B, context):
        outcomes = torch.tensor(list(itertools.product((0, 1), repeat=3)))
        known = (tokens_BNK < 0) | (tokens_BNK == outcomes.T[None, :, :])  # [B, 3, 8]
        fits = known.all(1) * self.joint  # [B, 8]
        sums = torch.stack([(fits[:, None] * (outcomes.T == code)).sum(-1) for code in (0, 1)], -1)
        return sums.log().float()[:, :, None]


def chi_square(counts, probabilities):
    """Pearson's statistic, less its mean, in its deviations."""
    expected, freedom = counts.sum() * probabilities, len(probabilities) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


def count_outcomes(tokens):
    rows = tokens[..., 0].numpy()
    return np.bincount(rows @ (1 << np.arange(rows.shape[1])[::-1]), minlength=1 << rows.shape[1])


JOINT = np.array([4, 1, 2, 9, 7, 1, 3, 3]) / 30


def test_one_code_a_step_in_a_fixed_order_draws_from_the_joint_distribution():
    counts = count_outcomes(draw(Known(JOINT), {}, np.full(12_000, -1), order="halton", num_steps=3))
    assert chi_square(counts, JOINT) < 5
    single = [JOINT.reshape(2, 2, 2).sum(axes) for axes in ((1, 2), (0, 2), (0, 1))]
    product = np.einsum("a,b,c->abc", *single).reshape(-1)
    assert chi_square(counts, product) > 20


def test_much_noise_on_the_choice_keeps_the_joint_distribution():
    tokens = draw(Known(JOINT), {}, np.full(12_000, -1), num_steps=3, schedule="linear", choice_temperature=1e4)
    # The last step has no noise, and one code only. Which code comes when does not depend on the draws.
    assert chi_square(count_outcomes(tokens), JOINT) < 5


def test_one_step_draws_every_code_from_its_own_marginal():
    single = [JOINT.reshape(2, 2, 2).sum(axes) for axes in ((1, 2), (0, 2), (0, 1))]
    tokens = draw(Known(JOINT), {}, np.full(12_000, -1), num_steps=1)
    assert chi_square(count_outcomes(tokens), np.einsum("a,b,c->abc", *single).reshape(-1)) < 5


def test_codes_are_drawn_from_the_distribution_given_the_known_ones():
    given = np.full((12_000, 3, 1), -1, np.int64)
    given[:, 2] = 1
    tokens = draw(Known(JOINT), {}, np.full(12_000, -1), given=given, order="halton", num_steps=2)
    conditional = JOINT.reshape(2, 2, 2)[:, :, 1].reshape(-1) / JOINT.reshape(2, 2, 2)[:, :, 1].sum()
    assert chi_square(count_outcomes(tokens[:, :2]), conditional) < 5


def test_without_noise_the_most_confident_draw_of_a_step_is_kept():
    p = [np.array([0.9, 0.1]), np.array([0.3, 0.7]), np.array([0.5, 0.5])]
    joint = np.einsum("a,b,c->abc", *p).reshape(-1)
    given = np.full((20_000, 3, 1), -1, np.int64)
    given[:, 2] = 0
    tokens = draw(Known(joint), {}, np.full(20_000, -1), given=given, num_steps=2, choice_temperature=0.0)
    # Two codes in two steps: the likelier of the two drawn ones stays, the other one is drawn again.
    expected = np.zeros((2, 2))
    for a, b in itertools.product((0, 1), repeat=2):
        drawn = p[0][a] * p[1][b]
        if p[0][a] > p[1][b]:
            expected[a] += drawn * p[1]
        else:
            expected[:, b] += drawn * p[0]
    counts = count_outcomes(tokens[:, :2])
    assert chi_square(counts, expected.reshape(-1)) < 5
    assert chi_square(counts, np.outer(p[0], p[1]).reshape(-1)) > 20


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_divides_the_logits_of_the_draws(temperature):
    tokens = draw(Known(JOINT), {}, np.full(12_000, -1), num_steps=1, temperature=temperature)
    tempered = [JOINT.reshape(2, 2, 2).sum(axes) ** (1 / temperature) for axes in ((1, 2), (0, 2), (0, 1))]
    tempered = [single / single.sum() for single in tempered]
    assert chi_square(count_outcomes(tokens), np.einsum("a,b,c->abc", *tempered).reshape(-1)) < 5


@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_likeliest_codes_of_one_step_are_those_of_the_guided_logits(make_masked, draw_params, context, guidance):
    prior = make_masked((Level(1, 2, 2, 5), Level(2, 3, 2, 7)))
    params, masked = draw_params(prior), torch.full((5, 8, 2), -1)
    tokens = draw(prior, params, LABELS, temperature=0.0, num_steps=1, guidance=guidance)
    told = apply(prior.logits, params, masked, torch.from_numpy(LABELS), context).double().numpy()
    untold = apply(prior.logits, params, masked, None, context).double().numpy()
    for positions, size in ((slice(0, 2), 5), (slice(2, 8), 7)):
        c, u = told[:, positions, :, :size], untold[:, positions, :, :size]
        np.testing.assert_array_equal(tokens[:, positions], (c + (guidance - 1) * (c - u)).argmax(-1))


def test_each_step_of_a_masked_sampler_has_its_own_scale(recorder, draw_params, context):
    params = draw_params(recorder)
    settings = {"temperature": 0.0, "num_steps": 4, "order": "halton", "guidance": 7.0}
    tokens = draw(recorder, params, LABELS, guidance_schedule=GuidanceSchedule("linear"), **settings)
    steps = [*(seen[::2] for seen in recorder.seen), tokens]  # the first branch of each image
    for scale, (before, after) in zip([1, 3, 5, 7], itertools.pairwise(steps), strict=True):
        c = apply(recorder.logits, params, before, torch.from_numpy(LABELS), context)
        u = apply(recorder.logits, params, before, None, context)
        settled = (before < 0) & (after >= 0)
        assert settled.any() and torch.equal((c + (scale - 1) * (c - u)).argmax(-1)[settled], after[settled])


def test_guidance_doubles_the_batch_and_a_scale_of_one_does_not(recorder, draw_params):
    params = draw_params(recorder)
    for settings, count in (({}, 5), ({"guidance": 1.5}, 10), ({"guidance_schedule": GuidanceSchedule("cosine")}, 5)):
        recorder.seen.clear()
        draw(recorder, params, LABELS, **settings)
        assert {len(seen) for seen in recorder.seen} == {count}


@pytest.mark.parametrize(("settings", "message"), [
    ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
    ({"schedule": "sine"}, "schedule must be one of cosine, arccos, linear, square, cubic, root; got 'sine'"),
    ({"order": "raster"}, "order must be one of confidence, halton; got 'raster'"),
    ({"choice_temperature": -1.0}, "choice_temperature must be at least 0, got -1.0"),
    ({"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
    ({"guidance": -0.5}, "guidance must be at least 0, got -0.5")])
def test_settings_of_a_masked_sampler_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MaskedSampler().with_settings(**settings)


def test_top_k_is_no_setting_of_a_masked_sampler():
    with pytest.raises(ValueError, match="top_k: MaskedSampler has no such setting; it has num_steps, schedule, "):
        MaskedSampler().with_settings(top_k=5)


def test_a_sampler_that_does_not_fit_the_prior_is_refused_with_the_other_ones_name(make_masked, make_prior, runtime):
    with pytest.raises(ValueError, match="MaskedPrior has no num_steps, .*sampler = @prior.MaskedSampler"):
        StepwiseSampler().bind(make_masked(), runtime, 4, torch.float32)
    with pytest.raises(ValueError, match="AutoregressivePrior has no logits of them; prior.StepwiseSampler may fit"):
        MaskedSampler().bind(make_prior(), runtime, 4, torch.float32)
