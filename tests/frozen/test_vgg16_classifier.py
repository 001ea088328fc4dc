"""VGG16 with logits, beside torchvision's own module with random weights."""
import pytest
import torch
import torch.nn.functional as F
import torchvision

from vqim.contracts.context import Context
from vqim.frozen.vgg16_classifier import TorchvisionVGG16, mean_matrix
from vqim.runtime.torch import TorchKernels, TorchRuntime
from vqim.training.state import start

CONTEXT = Context(TorchKernels())
LAST_RECTIFIERS = (3, 8, 15, 22, 29)
"""Of the five stages, in torchvision's `features`: relu1_2, 2_2, 3_3, 4_3, 5_3."""


@pytest.fixture(scope="module")
def module():
    """torchvision's module with drawn weights that keep the size of features, and drawn biases."""
    torch.manual_seed(1)
    with torch.device("meta"):
        module = torchvision.models.vgg16().eval()
    module.to_empty(device="cpu")
    for array in module.state_dict().values():
        bound = 0.1 if array.ndim == 1 else (6 / array[0].numel()) ** 0.5
        array.uniform_(-bound, bound)
    return module


@pytest.fixture(scope="module")
def weights_path(module, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(module.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def arrays(weights_path):
    return start(TorchvisionVGG16(weights_path, 96).init_spec(), 0, TorchRuntime()).arrays


# 96 / 32 = 3 features are repeated to 7, 256 / 32 = 8 are averaged, 224 / 32 = 7 stay.
@pytest.mark.parametrize("size", [96, 224, 256])
def test_maps_and_logits_are_those_of_torchvisions_own_module(module, weights_path, arrays, size):
    network = TorchvisionVGG16(weights_path, size)
    pool = {"pool_pn": torch.from_numpy(mean_matrix(size // 32, 7))}
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        found = network(arrays | pool, images, context=CONTEXT)
        x = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
            [0.229, 0.224, 0.225])[:, None, None]
        expected = module(x)
        maps = []
        for i, layer in enumerate(module.features):
            x = layer(x)
            if i in LAST_RECTIFIERS:
                maps.append(x.clone())
    for ours, theirs in zip(found.maps, maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())
    assert found.logits_BY.shape == (1, 1000) and expected.std() > 0.05
    torch.testing.assert_close(found.logits_BY, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_its_138_million_constants_are_in_no_checkpoint(weights_path, module):
    leaves = TorchvisionVGG16(weights_path, 96).init_spec()
    assert not any(leaf.saved for leaf in leaves.values())
    parameters = sum(parameter.numel() for parameter in module.parameters())
    assert sum(leaf.size for leaf in leaves.values()) == parameters + 6 + 7 * 3 == 138_357_544 + 27


@pytest.mark.parametrize("size", [1, 3, 7, 8, 10, 16])
def test_the_mean_matrix_is_adaptive_average_pooling(size):
    x = torch.randn(2, size, dtype=torch.float64)
    expected = F.adaptive_avg_pool1d(x, 7)
    torch.testing.assert_close(x @ torch.from_numpy(mean_matrix(size, 7)).double().T, expected, rtol=1e-6, atol=1e-6)


def test_images_of_another_size_are_refused(weights_path, arrays):
    with pytest.raises(ValueError, match=r"need images \[batch, 3, 96, 96\], got \(1, 3, 64, 64\)"):
        TorchvisionVGG16(weights_path, 96)(arrays, torch.zeros(1, 3, 64, 64), context=CONTEXT)


def test_a_file_without_the_classifying_layers_is_refused(tmp_path, module):
    trunk = {name: array for name, array in module.state_dict().items() if name.startswith("features.")}
    torch.save(trunk, tmp_path / "trunk.pth")
    network = TorchvisionVGG16(str(tmp_path / "trunk.pth"), 32)
    with pytest.raises(ValueError, match=r"trunk\.pth has no array classifier\.0\.weight"):
        start(network.init_spec(), 0, TorchRuntime())


def test_a_missing_file_stops_the_construction_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pth.*models\.vgg16\(weights='DEFAULT'\)"):
        TorchvisionVGG16(str(tmp_path / "none.pth"), 256)


def test_images_that_are_too_small_are_refused(tmp_path):
    with pytest.raises(ValueError, match="image_size must be at least 32 for VGG16's logits, got 16"):
        TorchvisionVGG16(str(tmp_path / "none.pth"), 16)
