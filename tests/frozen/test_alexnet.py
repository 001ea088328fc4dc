"""LPIPS on AlexNet against the published formula on torchvision's own module."""
import pathlib

import numpy as np
import pytest
import torch
import torchvision

from tests.tokenizer.published_lpips import published_lpips, weights
from vqim.evaluation.lpips import AlexNetLpips

EMOJI = pathlib.Path(__file__).parents[2] / "third_party/noto_emoji/noto_emoji_64.npz"
RECTIFIERS = (1, 4, 7, 9, 11)
"""Of torchvision's AlexNet."""


@pytest.fixture(scope="module")
def params():
    return weights(AlexNetLpips().init_spec())


@pytest.fixture(name="emoji_BCHW", scope="module")
def read_emoji():
    with np.load(EMOJI) as arrays:
        return torch.from_numpy(arrays["images"][200:1800:400]).movedim(-1, 1).float() / 255


@pytest.mark.parametrize("size", [64, 32])
def test_it_equals_the_published_formula_on_torchvision_features(params, emoji_BCHW, size):
    pictures_BCHW = emoji_BCHW[..., :size, :size]
    blurred_BCHW = torchvision.transforms.functional.gaussian_blur(pictures_BCHW, [5, 5], [1.0, 1.0])
    trunk = torchvision.models.alexnet(weights=None).features
    expected_B = published_lpips(trunk, RECTIFIERS, params, pictures_BCHW, blurred_BCHW)
    np.testing.assert_allclose(AlexNetLpips()(params, pictures_BCHW, blurred_BCHW).numpy(), expected_B, rtol=2e-5)


def test_equal_images_have_no_distance(params, emoji_BCHW):
    assert torch.equal(AlexNetLpips()(params, emoji_BCHW, emoji_BCHW), torch.zeros(len(emoji_BCHW)))


def test_blur_is_further_away_than_a_slight_change_of_brightness(params, emoji_BCHW):
    blurred_BCHW = torchvision.transforms.functional.gaussian_blur(emoji_BCHW, [9, 9], [2.0, 2.0])
    distance = AlexNetLpips()
    assert torch.all(distance(params, emoji_BCHW, blurred_BCHW) > 2 * distance(params, emoji_BCHW, emoji_BCHW - 0.08))


def test_images_that_are_too_small_are_refused_with_their_sizes(params):
    with pytest.raises(ValueError, match=r"at least 31x31, got \(1, 3, 30, 40\)"):
        AlexNetLpips()(params, torch.zeros(1, 3, 30, 40), torch.zeros(1, 3, 30, 40))
