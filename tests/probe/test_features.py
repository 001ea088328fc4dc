"""Features for probes: a prior's blocks, read from its run, and the pixels themselves."""
import numpy as np
import pytest
import torch

from vqim.checkpoint.manager import CheckpointManager
from vqim.contracts.context import Context
from vqim.nn.module import apply, spec
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.probe.features import PixelFeatures, PriorFeatures
from vqim.runtime.torch import TorchKernels, TorchRuntime
from vqim.state.leaf import prefixed
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.state import TrainState, save, start

CONTEXT = Context(TorchKernels())


def make_tokenizer():
    return ImageTokenizer(ViTEncoder(8, 4, 8, 1, 2, 8), VectorQuantizer(8, 8, 16, 4), ViTDecoder(8, 4, 8, 1, 2, 8), 8)


def make_prior(grid, num_classes):
    return AutoregressivePrior(grid, num_classes, width=12, num_layers=3, num_heads=2, hidden=8, dropout_rate=0.5)


@pytest.fixture(name="run")
def run_of_a_prior(tmp_path):
    """(directory, arrays) of a run whose state holds a tokenizer and a prior for three classes."""
    tokenizer = make_tokenizer()
    leaves = {**prefixed("frozen/tokenizer/", spec(tokenizer)),
              **prefixed("params/prior/", spec(make_prior(tokenizer.grid, 3)))}
    arrays = {name: 0.3 * torch.randn(leaf.shape) for name, leaf in leaves.items()}
    manager = CheckpointManager(tmp_path / "checkpoints")
    save(TrainState(arrays, 1, 0), leaves, manager, TorchRuntime(), data_position={}, config="", metrics={})
    manager.wait()
    return str(tmp_path), arrays


def cut(arrays, prefix):
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def test_a_priors_features_are_those_of_the_runs_networks(run):
    directory, arrays = run
    features = PriorFeatures(make_tokenizer(), make_prior, 3, directory)
    assert (features.image_size, features.num_layers, features.width) == (8, 3, 12)
    frozen = start(features.init_spec(), 0, TorchRuntime()).arrays
    images = torch.randint(256, (5, 8, 8, 3), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0, 1])
    found = features(frozen, {"images": images, "labels": labels}, context=CONTEXT)

    tokenizer = make_tokenizer()
    floats = images.permute(0, 3, 1, 2) / 255
    tokens = apply(tokenizer.tokens, cut(arrays, "frozen/tokenizer/"), floats, CONTEXT)
    prior = make_prior(tokenizer.grid, 3)
    expected = apply(prior.features, cut(arrays, "params/prior/"), tokens, CONTEXT)
    assert found.shape == (3, 5, 12) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    cached = features(frozen, {"tokens": tokens.int(), "labels": labels}, context=CONTEXT)
    torch.testing.assert_close(cached, expected)
    assert torch.equal(features(frozen, {"images": images, "labels": labels.flip(0)}, context=CONTEXT), found)


def test_features_carry_no_gradient(run):
    features = PriorFeatures(make_tokenizer(), make_prior, 3, run[0])
    frozen = {name: array.requires_grad_()
              for name, array in start(features.init_spec(), 0, TorchRuntime()).arrays.items()}
    assert not features(frozen, {"images": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)}, context=CONTEXT).requires_grad


def test_pixels_are_features_in_the_unit_interval():
    features = PixelFeatures(4)
    images = torch.randint(256, (5, 4, 4, 3), dtype=torch.uint8)
    found = features({}, {"images": images}, context=CONTEXT)
    assert found.shape == (features.num_layers, 5, features.width) == (1, 5, 48)
    assert features.init_spec() == {}
    np.testing.assert_allclose(
        np.sort(found[0], -1), np.sort(images.numpy().reshape(5, 48), -1) / 255, rtol=1e-6)
