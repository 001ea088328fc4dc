"""LPIPS on AlexNet against the published formula on torchvision's own module."""
import pathlib

import numpy as np
import pytest
import torch
import torchvision

from vqim.evaluation.lpips import AlexNetLpips

EMOJI = pathlib.Path(__file__).parents[2] / "third_party/noto_emoji/noto_emoji_64.npz"
HEADS = {1: "head1", 4: "head2", 7: "head3", 9: "head4", 11: "head5"}  # by torchvision's rectifiers


@pytest.fixture(scope="module")
def params():
    return {name: torch.from_numpy(leaf.init(name, leaf.shape, 0, tuple(slice(0, n) for n in leaf.shape)))
            for name, leaf in AlexNetLpips().init_spec().items()}


@pytest.fixture(name="emoji_BCHW", scope="module")
def read_emoji():
    with np.load(EMOJI) as arrays:
        return torch.from_numpy(arrays["images"][200:1800:400]).movedim(-1, 1).float() / 255


def reference(params, a_BCHW, b_BCHW):
    """Equation 1 of the paper in float64 NumPy."""
    trunk = torchvision.models.alexnet(weights=None).features
    convolutions = [layer for layer in trunk if isinstance(layer, torch.nn.Conv2d)]
    for stage, layer in enumerate(convolutions, start=1):
        layer.weight.data, layer.bias.data = params[f"conv{stage}_1/kernel_OIHW"], params[f"conv{stage}_1/bias_O"]

    def unit_features(x):
        x, maps = (2 * x - 1 - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]), {}
        x = x / torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        for i, layer in enumerate(trunk[:12]):
            x = layer(x)
            if i in HEADS:
                f = x.detach().double().numpy().copy()
                maps[HEADS[i]] = f / np.linalg.norm(f, axis=1, keepdims=True).clip(1e-10)
        return maps

    a, b = unit_features(a_BCHW), unit_features(b_BCHW)
    return sum(np.einsum("bchw,c->bhw", (a[head] - b[head]) ** 2, params[f"{head}/weight_C"].numpy()).mean((1, 2))
               for head in HEADS.values())


@pytest.mark.parametrize("size", [64, 32])
def test_it_equals_the_published_formula_on_torchvision_features(params, emoji_BCHW, size):
    pictures_BCHW = emoji_BCHW[..., :size, :size]
    blurred_BCHW = torchvision.transforms.functional.gaussian_blur(pictures_BCHW, [5, 5], [1.0, 1.0])
    expected_B = reference(params, pictures_BCHW, blurred_BCHW)
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
