"""Tiny priors and tokenizers with random parameters, and run directories with checkpoints of them."""
import numpy as np
import pytest
import torch

from vqim.checkpoint.manager import CheckpointManager
from vqim.contracts.context import Context
from vqim.contracts.grid import Level, TokenGrid
from vqim.frozen.from_run import FromRun
from vqim.nn.module import spec
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.masked import MaskedPrior
from vqim.prior.sampler import StepwiseSampler
from vqim.runtime.torch import TorchKernels, TorchRuntime
from vqim.state.leaf import prefixed
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.state import TrainState, save


@pytest.fixture(autouse=True)
def same_draws():
    """Every test draws the same inputs, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def draw_params():
    """`draw_params(module)`: an array of N(0, 0.3^2) for each parameter; initial values have zero biases."""
    def draw(module, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return {name: 0.3 * torch.randn(leaf.shape, generator=generator) for name, leaf in spec(module).items()}
    return draw


@pytest.fixture
def context():
    """float32 and evaluation on the torch runtime."""
    return Context(TorchKernels())


@pytest.fixture
def make_prior():
    """`make_prior(...)`: by default 2x3 tokens of 11 codes, 4 classes, two layers."""
    def make(height=2, width=3, vocabulary=11, num_classes=4, **kwargs):
        grid = TokenGrid((Level(height, width, 1, vocabulary),))
        return AutoregressivePrior(
            grid, num_classes, **{"width": 8, "num_layers": 2, "num_heads": 2, "hidden": 12, **kwargs})
    return make


@pytest.fixture
def make_masked():
    """`make_masked(...)`: by default 2x3 tokens with 2 codes of 11 each, 4 classes, two layers."""
    def make(levels=(Level(2, 3, 2, 11),), num_classes=4, **kwargs):
        return MaskedPrior(
            TokenGrid(levels), num_classes, **{"width": 8, "num_layers": 2, "num_heads": 2, "hidden": 12, **kwargs})
    return make


@pytest.fixture
def runtime():
    """The torch runtime."""
    return TorchRuntime()


@pytest.fixture
def tokenizer():
    """8x8 images to 2x2 tokens of 16."""
    return ImageTokenizer(ViTEncoder(8, 4, 8, 1, 2, 8), VectorQuantizer(8, 8, 16, 4), ViTDecoder(8, 4, 8, 1, 2, 8), 8)


@pytest.fixture
def sample_tokens():
    """`sample_tokens(prior, params, labels, ...)`: one image for each label; settings are the sampler's."""
    def draw(prior, params, labels, seed=0, *, numbers=None, given=None, runtime=None, dtype=torch.float32, **settings):
        labels = np.asarray(labels, np.int32)
        numbers = np.arange(len(labels)) if numbers is None else np.asarray(numbers)
        bound = StepwiseSampler(**settings).bind(prior, runtime or TorchRuntime(), len(labels), dtype)
        return bound(params, labels, numbers, seed, given)
    return draw


@pytest.fixture
def pretrained(tokenizer, draw_params, tmp_path):
    """The tokenizer, from a run with a checkpoint of random parameters."""
    manager, leaves = CheckpointManager(tmp_path / "checkpoints"), prefixed("params/tokenizer/", spec(tokenizer))
    arrays = {f"params/tokenizer/{name}": array for name, array in draw_params(tokenizer).items()}
    save(TrainState(arrays, 1, 0), leaves, manager, TorchRuntime(), data_position={}, config="", metrics={})
    manager.wait()
    return FromRun(tokenizer, str(tmp_path))
