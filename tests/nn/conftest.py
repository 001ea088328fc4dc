"""Parameters for modules, drawn at random: initial values have zero biases and unit gains, which hide mistakes."""
import pytest
import torch

from vqim.contracts.context import Context
from vqim.nn.module import spec
from vqim.runtime.torch import TorchKernels


@pytest.fixture(autouse=True)
def same_draws():
    """Every test draws the same inputs, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def draw_params():
    """`draw_params(module)`: an array of N(0, 0.3^2) for each parameter."""
    def draw(module, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return {name: 0.3 * torch.randn(leaf.shape, generator=generator) for name, leaf in spec(module).items()}
    return draw


@pytest.fixture
def context():
    """float32 and evaluation on the torch runtime."""
    return Context(TorchKernels())


@pytest.fixture
def training_context():
    """`training_context(key)`: float32 with randomness."""
    def make(key):
        return Context(TorchKernels(), key=torch.tensor(key, dtype=torch.int32))
    return make
