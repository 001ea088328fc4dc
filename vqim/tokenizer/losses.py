"""Reconstruction losses of stage 1: pure functions of arrays. ViT-VQGAN section 3.3.

    B batch, C image channels, H W image size
"""
import math

import torch
from torch import Tensor

LOGIT_LAPLACE_EPSILON = 0.1
"""Images x in [0, 1] are modelled as (1 - 2 eps) x + eps, away from the logit's poles (DALL-E's dVAE, appendix A.3)."""


def squeeze(x: Tensor) -> Tensor:
    """[0, 1] to [eps, 1 - eps]."""
    return (1 - 2 * LOGIT_LAPLACE_EPSILON) * x + LOGIT_LAPLACE_EPSILON


def unsqueeze(y: Tensor) -> Tensor:
    """The inverse of `squeeze`, not clamped."""
    return (y - LOGIT_LAPLACE_EPSILON) / (1 - 2 * LOGIT_LAPLACE_EPSILON)


def logit_laplace(images_BCHW: Tensor, location_BCHW: Tensor, log_scale_BCHW: Tensor) -> Tensor:
    """Negative log-likelihood of each value [B, C, H, W], in nats, under a logit-Laplace distribution.

    -log p(y) = log(2 b) + log(y (1 - y)) + |logit(y) - mu| / b, with y = squeeze(x), mu = location, b = exp(log_scale).
    """
    y = squeeze(images_BCHW.float())
    distance = (torch.logit(y) - location_BCHW.float()).abs()
    log_scale = log_scale_BCHW.float()
    return math.log(2) + log_scale + torch.log(y * (1 - y)) + distance * torch.exp(-log_scale)
