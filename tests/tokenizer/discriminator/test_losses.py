"""Adversarial losses against their formulas, and what regularises them against finite differences in float64."""
import math
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vqim.tokenizer.discriminator.losses import (
    Kind,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam_penalty,
    r1_penalty,
)

REAL, FAKE = torch.tensor([0.5, 3.0, -1.0]), torch.tensor([-2.0, 0.25])


def cross_entropy(logits, is_real):
    """Of the sigmoid's probabilities, as NumPy has it."""
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    return -np.log(p if is_real else 1 - p).mean()


@pytest.mark.parametrize("kind, scale", [("non_saturating", 1.0), ("vanilla", 0.5)])
def test_the_discriminator_minimises_cross_entropy_and_in_vqgan_half_of_it(kind, scale):
    expected = scale * (cross_entropy(REAL, True) + cross_entropy(FAKE, False))
    assert discriminator_loss(kind, REAL, FAKE).item() == pytest.approx(expected, rel=1e-6)


def test_the_hinge_loss_counts_logits_inside_of_the_margin_alone():
    # real: 0.5 is short of 1 by 0.5, 3 by nothing, -1 by 2; fake: -2 by nothing, 0.25 is over -1 by 1.25
    assert discriminator_loss("hinge", REAL, FAKE).item() == pytest.approx(0.5 * (2.5 / 3 + 1.25 / 2), rel=1e-6)


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_the_tokenizer_raises_the_mean_logit_under_vqgans_losses(kind):
    assert generator_loss(kind, FAKE).item() == pytest.approx(0.875)


def test_the_non_saturating_loss_is_cross_entropy_of_taking_fakes_for_real():
    assert generator_loss("non_saturating", FAKE).item() == pytest.approx(cross_entropy(FAKE, True), rel=1e-6)
    confident = torch.tensor([-30.0], requires_grad=True)
    gradient, = torch.autograd.grad(generator_loss("non_saturating", confident), confident)
    assert gradient.item() == pytest.approx(-1.0)  # where the saturating loss has none left


@pytest.mark.parametrize("kind", get_args(Kind))
def test_losses_of_patches_are_means_over_all_of_them(kind):
    real_Bhw, fake_Bhw = torch.randn(2, 3, 2, 2)
    assert discriminator_loss(kind, real_Bhw, fake_Bhw) == pytest.approx(
        discriminator_loss(kind, real_Bhw.flatten(), fake_Bhw.flatten()).item(), rel=1e-6)
    assert generator_loss(kind, fake_Bhw) == pytest.approx(generator_loss(kind, fake_Bhw.flatten()).item(), rel=1e-6)


def logits_of(weight, images_BCHW):
    """A smooth discriminator of 2x2 patches in float64, [B, 2, 2]."""
    return torch.tanh(F.conv2d(images_BCHW, weight, stride=2)).square().sum(1)


def finite_differences(function, x, delta=1e-5):
    """The gradient of a scalar function, one central difference an element."""
    gradient = torch.empty_like(x)
    for i in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=x.dtype)
        step[i] = delta
        step = step.reshape(x.shape)
        gradient.view(-1)[i] = (function(x + step) - function(x - step)) / (2 * delta)
    return gradient


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(5, 2, 2, 2, dtype=torch.float64, generator=generator),
            torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=generator))


def r1_by_differences(weight, images_BCHW):
    def of_one(image_CHW):
        return finite_differences(lambda x: logits_of(weight, x[None]).mean().item(), image_CHW).square().sum()

    return torch.stack([of_one(image_CHW) for image_CHW in images_BCHW]).mean()


def test_r1_equals_finite_differences_in_float64(problem):
    weight, images_BCHW = problem
    images_BCHW.requires_grad_()
    penalty = r1_penalty(logits_of(weight, images_BCHW), images_BCHW)
    assert penalty.item() == pytest.approx(r1_by_differences(weight, images_BCHW.detach()).item(), rel=1e-8)


def test_the_gradient_of_r1_equals_finite_differences_in_float64(problem):
    weight, images_BCHW = problem
    images_BCHW.requires_grad_()

    def penalty(weight):
        return r1_penalty(logits_of(weight, images_BCHW), images_BCHW)

    weight.requires_grad_()
    gradient, = torch.autograd.grad(penalty(weight), weight)
    expected = finite_differences(lambda x: penalty(x).item(), weight.detach())
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def test_r1_of_a_linear_discriminator_is_the_squared_length_of_its_weights():
    weight_CHW = torch.randn(3, 4, 4)
    images_BCHW = torch.rand(5, 3, 4, 4, requires_grad=True)
    logits_B = torch.einsum("bchw,chw->b", images_BCHW, weight_CHW)
    assert r1_penalty(logits_B, images_BCHW).item() == pytest.approx(weight_CHW.square().sum().item(), rel=1e-5)


def test_lecam_pulls_logits_that_are_beyond_the_other_sides_mean():
    # real over mean_fake = -0.5 by 1, 3.5 and not at all; fake under mean_real = 1 by 3 and 0.75
    penalty = lecam_penalty(REAL, FAKE, torch.tensor(1.0), torch.tensor(-0.5))
    assert penalty.item() == pytest.approx((1 + 3.5**2) / 3 + (9 + 0.75**2) / 2)


def test_the_adaptive_weight_is_the_ratio_of_gradients_by_finite_differences(problem):
    weight, images_BCHW = problem
    weight.requires_grad_()

    def reconstruction_loss(weight):
        return (F.conv2d(images_BCHW, weight) - 1).square().mean()

    def adversarial_loss(weight):
        return F.softplus(-F.conv2d(images_BCHW, weight)).mean()

    pull, push = (finite_differences(lambda x, loss=loss: loss(x).item(), weight.detach()).norm().item()
                  for loss in (reconstruction_loss, adversarial_loss))
    ratio = adaptive_weight(reconstruction_loss(weight), adversarial_loss(weight), weight)
    assert ratio.item() == pytest.approx(pull / (push + 1e-4), rel=1e-7)
    assert not ratio.requires_grad


def test_the_adaptive_weight_counts_the_given_part_of_the_layer_alone():
    x = torch.zeros(3, requires_grad=True)
    pull, push = (x * torch.tensor([3.0, 4.0, 100.0])).sum(), (x * torch.tensor([0.0, 2.0, 50.0])).sum()
    assert adaptive_weight(pull, push, x, lambda gradient: gradient[:2]).item() == pytest.approx(5 / 2.0001)


@pytest.mark.parametrize("push, expected", [(0.0, 1e4), (1e-9, 1e4), (3.0, 4.0 / 3.0001)])
def test_the_adaptive_weight_is_finite_and_at_most_ten_thousand(push, expected):
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    assert adaptive_weight(4 * x, push * x, x).item() == pytest.approx(expected)
    assert math.isfinite(adaptive_weight(1e30 * x, push * x, x).item())
