"""What tests of all folders share. torch is imported where it is asked for: tests of files and docs do without it."""
import sys

import pytest


@pytest.fixture(autouse=True)
def same_draws():
    """Every test draws the same inputs, whatever ran before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def draw_params():
    """`draw_params(module, seed=0)`: an array of N(0, 0.3^2) for each parameter; initial values have zero biases."""
    import torch

    from vqim.nn.module import spec

    def draw(module, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return {name: 0.3 * torch.randn(leaf.shape, generator=generator) for name, leaf in spec(module).items()}
    return draw


@pytest.fixture
def context():
    """float32 and evaluation on the torch runtime."""
    from vqim.contracts.context import Context
    from vqim.runtime.torch import TorchKernels

    return Context(TorchKernels())
