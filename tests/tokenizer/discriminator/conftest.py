"""Random parameters for discriminators, as initial values have zero biases, and tasks of a tokenizer with one."""
import functools
import math

import numpy as np
import pytest
import torch

from tests.tokenizer.discriminator.steps import RUNTIME
from tests.tokenizer.small_discriminator import SmallDiscriminator
from vqim.contracts.context import Context
from vqim.contracts.learning import Learner
from vqim.nn.module import spec
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.runtime.torch import TorchKernels
from vqim.tokenizer.discriminator.adversary import Adversary
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.terms import L2, LogitLaplace
from vqim.training.gradient_task import GradientTask


@pytest.fixture(autouse=True)
def same_draws():
    """Every test draws the same inputs, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def draw_params():
    """`draw_params(module, dtype)`: N(0, 1) for each parameter, kernels divided by the root of their fan-in."""
    def draw(module, dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        return {name: torch.randn(leaf.shape, dtype=dtype, generator=generator) * fan_in(leaf) ** -0.5
                for name, leaf in spec(module).items()}
    return draw


def fan_in(leaf):
    """The number of inputs of an output; 1 for what is no kernel."""
    if "out" not in leaf.axes:
        return 1
    return math.prod(size for size, axis in zip(leaf.shape, leaf.axes, strict=True) if axis != "out")


@pytest.fixture
def context():
    """`context(dtype)`: evaluation on the torch runtime."""
    def make(dtype=torch.float32):
        return Context(TorchKernels(), dtype)
    return make


@pytest.fixture
def make_learner():
    """`make_learner(...)`: what an objective makes a learner with.

    A large eps keeps Adam from making steps of rounding errors, where a gradient is zero but for these.
    """
    def make(optimizer=None, learning_rate=None, **kwargs):
        return functools.partial(
            Learner, optimizer=optimizer or AdamW(eps=1e-2), learning_rate=learning_rate or Constant(2e-3), **kwargs)
    return make


@pytest.fixture
def make_objective(make_tokenizer, make_learner):
    """`make_objective(adversary)`: of a tiny tokenizer."""
    def make(adversary=None, rate=3e-3):
        return TokenizerObjective(
            make_tokenizer(), make_learner(learning_rate=Constant(rate)), [L2(), LogitLaplace()], adversary=adversary)
    return make


@pytest.fixture
def make_task(make_objective, make_learner):
    """`make_task(...)`: a tiny tokenizer and its adversary, with the arguments given to the adversary."""
    def make(num_micro_batches=1, optimizer=None, dtype="float32", rate=3e-3, max_gradient_norm=None, **kwargs):
        adversary = Adversary(
            SmallDiscriminator(patches=kwargs.pop("patches", False)),
            make_learner(optimizer, max_gradient_norm=max_gradient_norm), **kwargs)
        return GradientTask(make_objective(adversary, rate), num_micro_batches, dtype)
    return make


@pytest.fixture(name="batch")
def batch_of_emoji(emoji):
    return RUNTIME.put({"images": emoji[:8], "labels": np.zeros(8, np.int32)})
