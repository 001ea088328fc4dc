"""What tests of all folders share. torch is imported where it is asked for: tests of files and docs do without it."""
import sys

import pytest

SLOWEST = (
    "training/test_runtimes.py", "launch/test_quickstart.py", "training/test_restart.py", "launch/test_sweep.py",
    "tokenizer/test_several_codes_xla.py", "launch/test_compile.py", "product/test_product_xla.py",
    "runtime/test_scan.py", "gin/test_experiments.py", "gin/test_paper_recipe.py")
"""Files that take a minute or more. One that is begun last keeps a process busy after the other has ended."""


def pytest_collection_modifyitems(items):
    """The slowest files come first (`make test` keeps this order)."""
    places = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(places)))


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
