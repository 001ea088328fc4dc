"""FID's Inception beside torchvision's module with the graph's poolings; the file's checksum; the resize."""
import hashlib

import numpy as np
import pytest
import torch
import torchvision

from vqim.contracts.context import Context
from vqim.frozen.inception import Inception, tensorflow_resize_matrix
from vqim.runtime.torch import TorchKernels, TorchRuntime
from vqim.third_party import fid_inception
from vqim.training.state import start

CONTEXT = Context(TorchKernels())


def random_module():
    """torchvision's module with FID's number of classes, and weights under which activations stay near 1."""
    module = torchvision.models.inception_v3(
        weights=None, aux_logits=False, num_classes=1008, init_weights=False, transform_input=False).eval()
    for name, array in module.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            array.normal_(0, 0.1)
        elif "running_var" in name or array.ndim == 1 and name.endswith("weight"):
            array.uniform_(0.5, 1.5)
        elif array.ndim == 4:
            array.normal_(0, (2 / array[0].numel()) ** 0.5)
    return module


def save(module, path):
    """The file as FID's would be, and its checksum."""
    torch.save(module.state_dict(), path)
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def poolings_of_the_graph(monkeypatch):
    """Means leave padding out, and the last of nine is a maximum: what torchvision's module does otherwise."""
    functional, calls = torch.nn.functional, []
    original = functional.avg_pool2d

    def pool(x, kernel_size, stride, padding):
        calls.append(x.shape[1:])
        if len(calls) == 9:
            return functional.max_pool2d(x, kernel_size, stride, padding)
        return original(x, kernel_size, stride, padding, count_include_pad=False)

    monkeypatch.setattr(torchvision.models.inception.F, "avg_pool2d", pool)
    return calls


def slow_resize(image_HW, size):
    """TensorFlow 1's `resize_bilinear` with align_corners=False, pixel by pixel."""
    height, width = image_HW.shape
    found = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = np.float32(i) * np.float32(height / size), np.float32(j) * np.float32(width / size)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = float(y) - top, float(x) - left
            upper = image_HW[top, left] * (1 - dx) + image_HW[top, right] * dx
            lower = image_HW[bottom, left] * (1 - dx) + image_HW[bottom, right] * dx
            found[i, j] = upper * (1 - dy) + lower * dy
    return found


def test_features_are_those_of_torchvisions_module_with_the_graphs_poolings(
    tmp_path, poolings_of_the_graph, monkeypatch,
):
    module = random_module()
    path, checksum = save(module, tmp_path / "weights.pth")
    network = Inception(64, path, checksum)
    images = torch.randint(0, 256, (2, 3, 64, 64)).float() / 255
    spatial, pooled = [], []
    module.Mixed_6d.branch1x1.register_forward_hook(lambda *call: spatial.append(call[2]))
    module.avgpool.register_forward_hook(lambda *call: pooled.append(call[2].flatten(1)))
    matrix = torch.from_numpy(tensorflow_resize_matrix(64, 299))
    with torch.no_grad():
        module((matrix @ (images * 255).round() @ matrix.T - 128) / 128)
        assert len(poolings_of_the_graph) == 9
        monkeypatch.undo()
        found = network(start(network.init_spec(), 0, TorchRuntime()).arrays, images, context=CONTEXT)
    assert pooled[0].std() > 0.01
    torch.testing.assert_close(found.pooled_BC, pooled[0], rtol=1e-4, atol=1e-4 * pooled[0].abs().max().item())
    logits = pooled[0] @ module.fc.weight.T  # without the bias
    torch.testing.assert_close(found.logits_BY, logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())
    seven = spatial[0][:, :7].permute(0, 2, 3, 1).flatten(1)  # TensorFlow's order of axes
    torch.testing.assert_close(found.spatial_BC, seven, rtol=1e-4, atol=1e-4 * seven.abs().max().item())


@pytest.mark.parametrize("size_in", [7, 64, 299, 400])
def test_the_resize_is_tensorflow_1s(size_in):
    image = np.random.default_rng(0).integers(0, 256, (size_in, size_in)).astype(np.float64)
    matrix = tensorflow_resize_matrix(size_in, 37).astype(np.float64)
    np.testing.assert_allclose(matrix @ image @ matrix.T, slow_resize(image, 37), rtol=1e-6, atol=1e-4)


def test_a_size_of_299_is_left_as_it_is():
    np.testing.assert_array_equal(tensorflow_resize_matrix(299, 299), np.eye(299))


def test_without_a_file_the_message_says_which_one_and_how_to_get_it(tmp_path):
    for path in (None, str(tmp_path / "missing.pth")):
        with pytest.raises(FileNotFoundError, match=r"pt_inception-2015-12-05-6726825d\.pth once .*mseitzer"):
            Inception(64, path)


def test_a_file_with_another_checksum_is_refused(tmp_path):
    path, _ = save(random_module(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth has the sha256 .*FID's Inception has 6726825d0af5f729"):
        start(Inception(64, path).init_spec(), 0, TorchRuntime())


def test_images_of_another_size_are_refused(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"takes images \[batch, 3, 64, 64\], got \(1, 3, 32, 32\)"):
        Inception(64, str(tmp_path / "weights.pth"))({}, torch.zeros(1, 3, 32, 32), context=CONTEXT)


def test_the_plan_has_the_arrays_of_torchvisions_module():
    shapes = {name: tuple(array.shape) for name, array in random_module().state_dict().items() if array.ndim == 4}
    assert {f"{name}.conv.weight": shape for name, shape in fid_inception.CONVOLUTIONS.items()} == shapes
