"""Random parameters for discriminators: initial values have zero biases, which hide mistakes."""
import pytest
import torch

from vqim.nn.context import Context
from vqim.nn.module import spec
from vqim.runtime.torch import TorchKernels


@pytest.fixture(autouse=True)
def same_draws():
    """Every test draws the same inputs, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def draw_params():
    """`draw_params(module, dtype)`: an array of N(0, 1) for each parameter."""
    def draw(module, dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        return {name: torch.randn(leaf.shape, dtype=dtype, generator=generator) for name, leaf in spec(module).items()}
    return draw


@pytest.fixture
def context():
    """`context(dtype)`: evaluation on the torch runtime."""
    def make(dtype=torch.float32):
        return Context(TorchKernels(), dtype)
    return make
