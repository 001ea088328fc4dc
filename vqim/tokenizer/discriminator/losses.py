"""Adversarial losses for stage 1 and their regularisers: pure functions of logits and images.

A discriminator's logits are one for each image, [B], or one for each of its patches, [B, h, w].

    B batch, C image channels, H W image size, h w patches
"""
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["non_saturating", "hinge", "vanilla"]

LECAM_DECAY = 0.99
"""Decay of LeCAM's running means, as in its authors' code."""

MAX_ADAPTIVE_WEIGHT = 1e4

_EPS = 1e-4


def generator_loss(kind: Kind, logits_fake: Tensor) -> Tensor:
    """What the tokenizer minimises, given the logits [B, ...] of its reconstructions: a scalar.

    'non_saturating': E softplus(-D(x')), as in Goodfellow et al. (2014) and StyleGAN2.
    'hinge', 'vanilla': -E D(x'), as in VQGAN with either of these discriminator losses.
    """
    if kind == "non_saturating":
        return F.softplus(-logits_fake).mean()
    return -logits_fake.mean()


def discriminator_loss(kind: Kind, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """What the discriminator minimises, given the logits [B, ...] of images and of reconstructions: a scalar.

    'non_saturating': E softplus(-D(x)) + E softplus(D(x')), the cross-entropy of real against fake, as in StyleGAN2.
    'hinge': (E max(0, 1 - D(x)) + E max(0, 1 + D(x'))) / 2, as in VQGAN.
    'vanilla': half of the cross-entropy, as in VQGAN.
    """
    if kind == "hinge":
        return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())
    cross_entropy = F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()
    return cross_entropy if kind == "non_saturating" else 0.5 * cross_entropy


def r1_penalty(logits: Tensor, images_BCHW: Tensor) -> Tensor:
    """E |grad D(x)|^2 on images, without its weight gamma / 2: R1 of Mescheder et al. (2018), equation (9).

    For a discriminator of patches, D(x) is the mean of their logits, so that the weight does not depend on their
    number. Where logits depend on other images in the batch, the gradient is that of the sum over the batch, as usual.

    Args:
      logits: logits [B, ...], computed from the images by differentiable operations.
      images_BCHW: the images, which require a gradient.
    """
    total = logits.flatten(1).mean(1).sum() if logits.ndim > 1 else logits.sum()
    gradient_BCHW, = torch.autograd.grad(total, images_BCHW, create_graph=True)
    return gradient_BCHW.square().sum((1, 2, 3)).mean()


def lecam_penalty(logits_real: Tensor, logits_fake: Tensor, mean_real: Tensor, mean_fake: Tensor) -> Tensor:
    """LeCAM of Tseng et al. (2021, arXiv 2104.03310) keeps logits near the running means of the other kind's logits.

    E max(0, D(x) - mean_fake)^2 + E max(0, mean_real - D(x'))^2. The paper's equation has no max; its authors' code,
    for BigGAN and StyleGAN2, has it.

    Args:
      logits_real: logits [B, ...] of images.
      logits_fake: logits [B, ...] of reconstructions.
      mean_real: running mean of the logits of images, a constant here.
      mean_fake: running mean of the logits of reconstructions, a constant here.
    """
    return F.relu(logits_real - mean_fake).square().mean() + F.relu(mean_real - logits_fake).square().mean()


def adaptive_weight(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor,
    part: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """VQGAN's weight of the adversarial loss, Esser et al. (2021), equation (7): a scalar without gradient.

    It is |grad reconstruction loss| / (|grad adversarial loss| + 1e-4), at most 1e4, with gradients with respect to a
    kernel in the decoder's last layer, so that both losses have equal gradients there. 1e-4 is from VQGAN's code; the
    paper prints 1e-6.

    Args:
      reconstruction_loss: scalar.
      adversarial_loss: scalar.
      last_layer: the kernel, a leaf of the autograd graph.
      part: selects the elements of a gradient that count; by default all.
    """
    pull, push = (part(torch.autograd.grad(loss, last_layer, retain_graph=True)[0]).norm()
                  for loss in (reconstruction_loss, adversarial_loss))
    return (pull / (push + _EPS)).clamp(max=MAX_ADAPTIVE_WEIGHT)
