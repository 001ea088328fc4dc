"""The logit-Laplace likelihood: a density, its values by hand, and its numerics."""
import math

import numpy as np
import pytest
import torch

from vqim.tokenizer.losses import LOG_SCALE_FLOOR, floor_log_scale, logit_laplace, map_pixels, unmap_pixels


@pytest.mark.parametrize(("location", "scale"), [(0.0, 0.5), (0.7, 0.3), (-1.5, 0.4)])
def test_the_density_integrates_to_one(location, scale):
    # By the trapezoidal rule over logits, on each side of the kink; dy = y (1 - y) dlogit.
    total = 0.0
    for side in (-1, 1):
        logits = location + side * np.linspace(0, 13 * scale, 4001)
        y = 1 / (1 + np.exp(-logits))
        x = torch.from_numpy((y - 0.1) / 0.8)
        nll = logit_laplace(x, torch.tensor(location), torch.tensor(math.log(scale)))
        total += abs(np.trapezoid(np.exp(-nll.double().numpy()) * y * (1 - y), logits))
    assert total == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize(("x", "location", "scale", "expected"), [
    (0.5, 0.0, 1.0, -math.log(2)),  # y = 1/2: log 2 + log 1/4
    (1.0, 0.0, 2.0, math.log(4 * 0.09) + math.log(9) / 2),  # y = 0.9, whose logit is log 9
    (0.0, math.log(9), 0.5, math.log(0.09) + 4 * math.log(9)),  # y = 0.1, whose logit is -log 9
])
def test_likelihoods_are_those_computed_by_hand(x, location, scale, expected):
    nll = logit_laplace(torch.tensor(x), torch.tensor(location), torch.tensor(math.log(scale)))
    assert nll.item() == pytest.approx(expected, rel=1e-5)


def test_the_likeliest_scale_is_the_distance_of_logits():
    x, location = torch.tensor(0.9), torch.tensor(-0.2)
    distance = math.log(0.82 / 0.18) + 0.2
    log_scale = torch.tensor(math.log(distance), requires_grad=True)
    logit_laplace(x, location, log_scale).backward()
    assert abs(log_scale.grad) < 1e-5


def test_black_and_white_have_finite_likelihoods_and_gradients():
    location = torch.zeros(2, requires_grad=True)
    nll = logit_laplace(torch.tensor([0.0, 1.0]), location, torch.zeros(2))
    nll.sum().backward()
    assert torch.isfinite(nll).all()
    torch.testing.assert_close(location.grad, torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize(("above", "expected"), [
    (10.0, 10 + 4.54e-5), (3.0, 3.048587), (0.0, 0.693147), (-2.0, 0.126928), (-1000.0, 0.0),  # log(1 + exp(above))
])
def test_log_scales_are_the_same_far_above_the_floor_and_never_below(above, expected):
    floored = floor_log_scale(torch.tensor(LOG_SCALE_FLOOR + above, dtype=torch.float64))
    assert floored.item() == pytest.approx(LOG_SCALE_FLOOR + expected, abs=1e-6)


def test_an_exact_match_has_bounded_gradients_however_sure_the_decoder_is():
    location, raw = (torch.tensor([x], requires_grad=True) for x in (math.log(0.26 / 0.74), -200.0))
    for x in (0.2, 0.2 + 1e-4):  # y = 0.26 is at the location
        nll = logit_laplace(torch.tensor([x]), location, floor_log_scale(raw))
        gradients = torch.autograd.grad(nll, [location, raw])
        assert torch.isfinite(nll) and all(gradient.abs() <= math.exp(-LOG_SCALE_FLOOR) for gradient in gradients)


def test_bfloat16_predictions_are_compared_in_float32():
    images = torch.rand(100)
    location, log_scale = torch.randn(100).bfloat16(), torch.randn(100).bfloat16()
    nll = logit_laplace(images, location, log_scale)
    torch.testing.assert_close(nll, logit_laplace(images, location.float(), log_scale.float()), rtol=0, atol=0)


def test_squeezing_keeps_away_from_the_logits_poles():
    torch.testing.assert_close(map_pixels(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.1, 0.5, 0.9]))
    x = torch.linspace(-0.1, 1.1, 13)
    torch.testing.assert_close(unmap_pixels(map_pixels(x)), x)
