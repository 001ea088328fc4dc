"""Block-regional and dilated attention beside a loop over positions in float64."""
import math

import numpy as np
import pytest
import torch

from vqim.nn.module import apply, spec
from vqim.nn.windows import RegionalDilatedAttention, region_side
from vqim.runtime.torch import TorchRuntime
from vqim.training.state import start

HEIGHT, WIDTH, CHANNELS = 16, 8, 128
SIDE = 4  # of the regions at both sizes


def attend(x_CHW, arrays, name, is_seen):
    """x + attention(norm(x)) for one image; `is_seen(a, b)` says whether position a attends to position b."""
    p = {key: value.double().numpy() for key, value in arrays.items()}
    grouped = x_CHW.reshape(32, -1)
    normed = (grouped - grouped.mean(1, keepdims=True)) / np.sqrt(grouped.var(1, keepdims=True) + 1e-6)
    normed = normed.reshape(x_CHW.shape) * p[f"{name}_norm/gain_C"][:, None, None] + p[
        f"{name}_norm/bias_C"][:, None, None]
    tokens = normed.reshape(len(x_CHW), -1).T
    q, k, v = (tokens @ p[f"{name}/{part}/kernel_IO"] + p[f"{name}/{part}/bias_O"]
               for part in ("query", "key", "value"))
    places = [(row, column) for row in range(HEIGHT) for column in range(WIDTH)]
    out = np.zeros_like(tokens)
    for i, a in enumerate(places):
        seen = [j for j, b in enumerate(places) if is_seen(a, b)]
        for head in (slice(0, 64), slice(64, 128)):
            logits = np.array([q[i, head] @ k[j, head] for j in seen]) / math.sqrt(64)
            weights = np.exp(logits - logits.max())
            out[i, head] = sum(w * v[j, head] for w, j in zip(weights / weights.sum(), seen, strict=True))
    out = out @ p[f"{name}/out/kernel_IO"] + p[f"{name}/out/bias_O"]
    return x_CHW + out.T.reshape(x_CHW.shape)


def test_a_pair_is_regional_then_dilated_attention(draw_params, context):
    module = RegionalDilatedAttention(CHANNELS)
    arrays = draw_params(module)
    x = torch.randn(2, CHANNELS, HEIGHT, WIDTH)
    found = apply(module.forward, arrays, x, context)
    for image, ours in zip(x, found, strict=True):
        expected = attend(image.double().numpy(), arrays, "regional",
                          lambda a, b: (a[0] // SIDE, a[1] // SIDE) == (b[0] // SIDE, b[1] // SIDE))
        expected = attend(expected, arrays, "dilated",
                          lambda a, b: (a[0] % SIDE, a[1] % SIDE) == (b[0] % SIDE, b[1] % SIDE))
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_any_position_influences_every_other(draw_params, context):
    # Without a normalisation, whose means connect all positions too.
    module = RegionalDilatedAttention(32, norm=lambda num_features: lambda x_BCHW, context, condition: x_BCHW)
    arrays = draw_params(module)
    x = 0.1 * torch.randn(1, 32, 16, 16, requires_grad=True)
    made = apply(module.forward, arrays, x, context)
    (gradient,) = torch.autograd.grad(made[0, :, 3, 14].sum(), x)
    assert (gradient.abs().sum((0, 1)) > 1e-5).all()


def test_a_pair_is_the_identity_before_training(context):
    module = RegionalDilatedAttention(32)
    arrays = start(spec(module), 0, TorchRuntime()).arrays
    x = torch.randn(1, 32, 8, 8)
    assert torch.equal(apply(module.forward, arrays, x, context), x)


# HiT-GAN's patch sizes (models/generators.py: 4, 4, 8, 8 for 8, 16, 32, 64), and squares that divide the size.
@pytest.mark.parametrize(("size", "side"), [
    (8, 4), (16, 4), (32, 8), (64, 8), (128, 16), (256, 16), (96, 12), (4, 2), (1, 1), (7, 7)])
def test_regions_have_about_as_many_positions_as_there_are_regions(size, side):
    assert region_side(size) == side
