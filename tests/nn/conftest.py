"""Contexts with randomness."""
import pytest
import torch

from vqim.contracts.context import Context
from vqim.runtime.torch import TorchKernels


@pytest.fixture
def training_context():
    """`training_context(key)`: float32 with randomness."""
    def make(key):
        return Context(TorchKernels(), key=torch.tensor(key, dtype=torch.int32))
    return make
