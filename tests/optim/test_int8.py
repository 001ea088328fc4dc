import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqim.optim.int8 import dequantise, quantise, rounding_noise

FINITE = st.floats(-(2.0**120), 2.0**120, width=32)


def matrices(elements):
    return st.integers(1, 6).flatmap(lambda rows: st.integers(1, 6).flatmap(
        lambda columns: st.lists(elements, min_size=rows * columns, max_size=rows * columns).map(
            lambda values: torch.tensor(values, dtype=torch.float32).reshape(rows, columns))))


@settings(max_examples=200, deadline=None)
@given(matrices(FINITE), st.sampled_from([(0,), (1,), (0, 1)]))
def test_error_is_at_most_half_a_step_of_the_shared_scale(x, dims):
    q, scale = quantise(x, dims)
    largest = x.double().abs().amax(dims, keepdim=True)
    error = (dequantise(q, scale, dims).double() - x.double()).abs()
    # below 127 times the smallest normal number everything is zero
    assert (error <= largest / 127 * 0.5 * (1 + 1e-5) + 127 * torch.finfo(torch.float32).tiny).all()


@settings(max_examples=200, deadline=None)
@given(matrices(FINITE), st.sampled_from([(0,), (1,), (0, 1)]))
def test_what_was_quantised_once_stays_as_it_is(x, dims):
    q, scale = quantise(x, dims)
    again, scale_again = quantise(dequantise(q, scale, dims), dims)
    assert torch.equal(q, again)
    torch.testing.assert_close(scale_again, scale, rtol=3e-7, atol=0)


@settings(max_examples=100, deadline=None)
@given(matrices(st.floats(-1, 1, width=32)), st.integers(-100, 100))
def test_a_power_of_two_passes_through_to_the_scale(x, exponent):
    x = torch.where(x.abs() < 2.0**-20, 0.0, x)
    q, scale = quantise(x, (0,))
    q_scaled, scale_scaled = quantise(x * 2.0**exponent, (0,))
    assert torch.equal(q, q_scaled) and torch.equal(scale_scaled, scale * 2.0**exponent)


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 3.4e38])
@pytest.mark.parametrize("noise", [None, 0.999])
def test_a_channel_of_all_zero_tiny_or_huge_values_gives_no_nan_and_no_overflow(value, noise):
    x = torch.tensor([[value, -value], [value, 1.0]])
    q, scale = quantise(x, (1,), None if noise is None else torch.full((2, 2), noise))
    assert torch.isfinite(dequantise(q, scale, (1,))).all()
    assert q.min() >= -127
    assert q[0].tolist() in ([0, 0], [127, -127], [127, -126])


def test_the_largest_magnitude_becomes_127_with_its_sign():
    q, scale = quantise(torch.tensor([[0.5, -4.0], [2.0, 1.0]]), (0,))
    assert q.tolist() == [[32, -127], [127, 32]]
    torch.testing.assert_close(scale, torch.tensor([2.0, 4.0]) / 127)


def test_halves_are_rounded_to_even():
    q, _ = quantise(torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5]), (0,))
    assert q.tolist() == [127, 0, 2, 2, 0, -2]


def test_stochastic_rounding_is_right_on_average_and_never_off_by_a_level():
    x = torch.linspace(-1, 1, 41)
    total = torch.zeros(41)
    for key in range(4000):
        q, scale = quantise(x, (0,), rounding_noise(torch.tensor(key, dtype=torch.int32), x.shape))
        value = dequantise(q, scale, (0,))
        assert ((value - x).abs() <= 1.0001 / 127).all()
        total += value
    # the standard error of the mean is at most half a level / sqrt(4000) = 6.3e-5
    np.testing.assert_allclose(total / 4000, x, atol=5 * 6.3e-5)


def test_rounding_noise_is_uniform_and_uncorrelated_between_neighbours_and_keys():
    keys = torch.arange(10, dtype=torch.int32)
    noise = torch.stack([rounding_noise(key, (100, 100)) for key in keys]).double()
    assert 0 <= noise.min() and noise.max() < 1
    counts = torch.histc(noise, 100, 0, 1)  # 1000 expected in each, standard deviation 32
    assert ((counts - 1000).abs() < 5 * 32).all()
    centred = (noise - 0.5) * 12**0.5
    for other in (centred.roll(1, 2), centred.roll(1, 1), centred.roll(1, 0)):
        assert abs((centred * other).mean()) < 5 / 100_000**0.5


def settled_fraction(target, stochastic):
    """Follows m <- 0.9 m + 0.1 u at constant u from m = 0, stored in int8 beside a settled 1; returns m / u."""
    u = torch.tensor([1.0, target])
    m, history = torch.tensor([1.0, 0.0]), []
    for step in range(2000):
        noise = rounding_noise(torch.tensor(step, dtype=torch.int32), (2,)) if stochastic else None
        m = dequantise(*quantise(0.9 * m + 0.1 * u, (0,), noise), (0,))
        history.append(m[1].item())
    return float(np.mean(history[1000:])) / target


def test_nearest_rounding_has_a_dead_zone_of_four_percent_of_the_largest():
    """A stored level moves only if |u - m| exceeds half a level / (1 - beta1): 5 levels of 127, 3.9%."""
    m = torch.tensor([1.0, 0.5])
    moved = []
    for levels in range(-9, 10):
        u = torch.tensor([1.0, round(0.5 * 127) / 127 + levels / 127])
        stored = dequantise(*quantise(m, (0,)), (0,))
        q, _ = quantise(0.9 * stored + 0.1 * u, (0,))
        moved.append(int(q[1]) - 64)
    assert [levels for levels, move in zip(range(-9, 10), moved, strict=True) if move == 0] == list(range(-5, 6))


@pytest.mark.parametrize("target, nearest", [(0.01, 0.0), (0.03, 0.0), (0.1, 8 / 12.7)])
def test_stochastic_rounding_reaches_a_small_update_that_nearest_rounding_never_does(target, nearest):
    assert settled_fraction(target, stochastic=False) == pytest.approx(nearest, rel=1e-4)
    assert settled_fraction(target, stochastic=True) == pytest.approx(1, abs=0.05)
