"""Sampling from logits: distributions by chi-square, sets of top-k and top-p against slow references."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqim.prior.sampling import check_sampling, keep_top_k, keep_top_p, sample_logits

DISTINCT_LOGITS = st.lists(st.integers(-60, 60), min_size=1, max_size=12, unique=True).map(
    lambda steps: [step / 8 for step in steps])


def softmax(logits):
    exponentials = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return exponentials / exponentials.sum()


def draw_counts(logits, num_draws=100_000, **settings):
    """How often each code is drawn."""
    uniform = torch.from_numpy(np.random.default_rng(0).random((num_draws, len(logits)), np.float32))
    codes = sample_logits(torch.tensor(logits).expand(num_draws, -1), uniform, **settings)
    return np.bincount(codes, minlength=len(logits))


def assert_drawn_from(probabilities, counts):
    """Pearson's chi-square is not above its mean by five deviations and ten: a right sampler fails once in 10^5."""
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = counts.sum() * probabilities[possible]
    degrees = possible.sum() - 1
    assert ((counts[possible] - expected) ** 2 / expected).sum() < degrees + 5 * math.sqrt(2 * degrees) + 10


LOGITS = [0.0, 2.0, -1.0, 0.5, 1.5, -3.0]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_codes_are_drawn_from_the_softmax(temperature):
    assert_drawn_from(softmax(np.array(LOGITS) / temperature), draw_counts(LOGITS, temperature=temperature))


def test_the_chi_square_test_can_fail():
    with pytest.raises(AssertionError):
        assert_drawn_from(softmax(np.array(LOGITS) / 1.05), draw_counts(LOGITS))


def test_top_k_draws_from_the_likeliest_renormalised():
    kept = np.array([0.0, 2.0, -np.inf, 0.5, 1.5, -np.inf])
    assert_drawn_from(softmax(kept), draw_counts(LOGITS, top_k=4))


def test_top_p_looks_at_what_temperature_and_top_k_leave():
    # Of the four likeliest, three reach 0.84; of all six they do not.
    shares = softmax([1.0, 0.75, 0.25, 0.0])
    assert shares[:2].sum() < 0.84 < shares[:3].sum()
    before_top_k = softmax(np.array(LOGITS) / 2)
    assert np.sort(before_top_k)[-3:].sum() < 0.84
    kept = np.array([-np.inf, 2.0, -np.inf, 0.5, 1.5, -np.inf]) / 2
    assert_drawn_from(softmax(kept), draw_counts(LOGITS, temperature=2.0, top_k=4, top_p=0.84))


@pytest.mark.parametrize("settings", [
    {"temperature": 0.7}, {"top_p": 0.8}, {"temperature": 1.3, "top_k": 4, "top_p": 0.6}])
def test_settings_as_tensors_draw_what_they_draw_as_numbers(settings):
    generator = torch.Generator().manual_seed(0)
    logits, uniform = 3 * torch.randn(2000, 7, generator=generator), torch.rand(2000, 7, generator=generator)
    tensors = {name: torch.tensor(value) if isinstance(value, float) else value for name, value in settings.items()}
    expected = sample_logits(logits, uniform, **settings)
    assert torch.equal(sample_logits(logits, uniform, **tensors), expected)
    assert not torch.equal(sample_logits(logits, uniform), expected)


def test_zero_temperature_takes_the_likeliest():
    logits = torch.randn(20, 7)
    assert torch.equal(sample_logits(logits, torch.rand(20, 7), temperature=0.0), logits.argmax(-1))


def test_one_code_is_left_by_top_k_1_and_by_a_tiny_top_p():
    logits = torch.randn(20, 7)
    for settings in ({"top_k": 1}, {"top_p": 1e-6}):
        assert torch.equal(sample_logits(logits, torch.rand(20, 7), **settings), logits.argmax(-1))


def test_the_ends_of_the_unit_interval_are_harmless():
    uniform = torch.tensor([[0.0, 0.0, 1 - 2**-24], [0.0, 0.0, 0.0]])
    assert sample_logits(torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), uniform).tolist() == [2, 1]


@given(DISTINCT_LOGITS, st.integers(1, 15))
def test_top_k_keeps_the_k_largest(logits, k):
    kept = keep_top_k(torch.tensor([logits]), k)[0]
    largest = sorted(range(len(logits)), key=lambda code: -logits[code])[:k]
    for code, logit in enumerate(logits):
        assert kept[code] == (logit if code in largest else -math.inf)


def test_top_k_keeps_ties_with_the_last():
    assert keep_top_k(torch.tensor([[1.0, 2.0, 1.0, 0.0]]), 2).tolist() == [[1.0, 2.0, 1.0, -math.inf]]


@given(DISTINCT_LOGITS, st.floats(0.01, 1.0))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    kept = keep_top_p(torch.tensor([logits]), p)[0]
    probabilities, reached = softmax(logits), 0.0
    for code in sorted(range(len(logits)), key=lambda code: -logits[code]):
        if abs(reached - p) > 1e-5:  # nearer, rounding decides
            assert kept[code] == (logits[code] if reached < p else -math.inf)
        reached += probabilities[code]


def test_rows_have_sets_of_their_own():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.1, 0.2]])  # shares 0.84, 0.11, 0.04 and 0.30, 0.33, 0.37
    assert torch.isfinite(keep_top_p(logits, 0.69)).tolist() == [[True, False, False], [False, True, True]]


@pytest.mark.parametrize(("settings", "message"), [
    ({"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
    ({"temperature": math.nan}, "temperature must be at least 0, got nan"),
    ({"top_k": 0}, "top_k must be at least 1 or None, got 0"),
    ({"top_p": 0.0}, r"top_p must be in \(0, 1\] or None, got 0.0"),
    ({"top_p": 1.5}, r"top_p must be in \(0, 1\] or None, got 1.5"),
])
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        check_sampling(**{"temperature": 1.0, "top_k": None, "top_p": None, **settings})
