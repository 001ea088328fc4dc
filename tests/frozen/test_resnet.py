"""torchvision's ResNets, beside torchvision's own forward pass; resizing, beside Pillow's and torch's."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from vqim.contracts.context import Context
from vqim.frozen.resnet import TorchvisionResNet, resize_matrix
from vqim.runtime.torch import TorchKernels, TorchRuntime
from vqim.training.state import start

CONTEXT = Context(TorchKernels())


def make_module(depth, num_classes):
    """torchvision's module with weights and statistics that none of its defaults would pass for."""
    module = torchvision.models.get_model(f"resnet{depth}", num_classes=num_classes).eval()
    for name, array in module.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            array.normal_(0, 0.1)
        elif "running_var" in name or array.ndim == 1 and name.endswith("weight"):
            array.uniform_(0.5, 1.5)
    return module


@pytest.mark.parametrize(("depth", "num_classes", "image_size"), [(101, 1000, 256), (18, 7, 32)])
def test_logits_are_those_of_torchvisions_own_module(tmp_path, depth, num_classes, image_size):
    module = make_module(depth, num_classes)
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    classifier = TorchvisionResNet(str(tmp_path / "weights.pth"), image_size, depth, num_classes)
    assert (classifier.image_size, classifier.num_classes) == (image_size, num_classes)
    frozen = start(classifier.init_spec(), 0, TorchRuntime()).arrays
    images = torch.rand(2, 3, image_size, image_size)
    with torch.no_grad():
        found = classifier(frozen, images, context=CONTEXT)
        resized = transforms.resize(images, [224, 224], antialias=True)
        expected = module(transforms.normalize(resized, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert found.shape == (2, num_classes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert expected.std() > 1e-2


def test_weights_of_resnet_are_in_no_checkpoint(tmp_path):
    torch.save(make_module(18, 2).state_dict(), tmp_path / "weights.pth")
    leaves = TorchvisionResNet(str(tmp_path / "weights.pth"), 8, 18, 2).init_spec()
    assert not any(leaf.saved for leaf in leaves.values())


def test_weights_of_another_depth_are_refused(tmp_path):
    torch.save(make_module(18, 2).state_dict(), tmp_path / "weights.pth")
    classifier = TorchvisionResNet(str(tmp_path / "weights.pth"), 8, 34, 2)
    with pytest.raises(ValueError, match=r"weights\.pth has no array layer1\.2\.conv1\.weight"):
        start(classifier.init_spec(), 0, TorchRuntime())


def test_weights_for_other_classes_are_refused(tmp_path):
    torch.save(make_module(18, 2).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"resnet/fc/weight: expected an array of shape \(3, 512\).* has \(2, 512\)"):
        start(TorchvisionResNet(str(tmp_path / "weights.pth"), 8, 18, 3).init_spec(), 0, TorchRuntime())


def test_a_missing_file_and_an_unknown_depth_stop_it_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.pth"):
        TorchvisionResNet(str(tmp_path / "none.pth"), 8)
    with pytest.raises(ValueError, match="depth must be one of"):
        TorchvisionResNet(str(tmp_path / "none.pth"), 8, depth=20)


@pytest.mark.parametrize(("size_in", "size_out"), [(256, 224), (32, 224), (299, 224), (500, 224), (7, 7)])
def test_resizing_is_antialiased_bilinear_interpolation(size_in, size_out):
    image = np.random.default_rng(0).random((size_in, size_in), np.float32)
    matrix = resize_matrix(size_in, size_out)
    found = matrix @ image @ matrix.T
    pillow = np.asarray(Image.fromarray(image).resize((size_out, size_out), Image.Resampling.BILINEAR))
    # In float64: torch's own float32 weights are off by more than ours.
    double = torch.from_numpy(image)[None, None].double()
    theirs = F.interpolate(double, (size_out, size_out), mode="bilinear", antialias=True)
    np.testing.assert_allclose(found, pillow, atol=1e-6)
    np.testing.assert_allclose(found, theirs[0, 0], atol=1e-6)
