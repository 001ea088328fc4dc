"""The average of parameters, against its recurrence in NumPy."""
import numpy as np
import pytest
import torch

from vqim.optim.ema import ema_rate, ema_spec, update_ema
from vqim.state.init import Constant
from vqim.state.leaf import Leaf

KEEP = torch.tensor(True)


def test_ema_is_the_recurrence_of_an_exponential_average():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(40, 3)).astype(np.float32)
    state = {"params/net/w": torch.zeros(3), "ema/net/w": torch.zeros(3)}
    expected = np.zeros(3)
    for step, value in enumerate(values):
        state["params/net/w"] = torch.from_numpy(value)
        update_ema(state, "net", torch.tensor(ema_rate(0.9, step)), KEEP)
        expected += max(0.1, 10 / (10 + step)) * (value - expected)
    np.testing.assert_allclose(state["ema/net/w"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_first_step_takes_the_parameters_as_they_are():
    state = {"params/net/w": torch.tensor([2.0, -3.0]), "ema/net/w": torch.zeros(2)}
    update_ema(state, "net", torch.tensor(ema_rate(0.999, 0)), KEEP)
    assert torch.equal(state["ema/net/w"], state["params/net/w"])


def test_the_rate_ends_at_what_the_decay_leaves():
    assert ema_rate(0.999, 10**6) == pytest.approx(0.001)


def test_a_step_that_is_not_kept_leaves_the_average_even_beside_nan():
    state = {"params/net/w": torch.tensor([torch.nan]), "ema/net/w": torch.tensor([1.5])}
    update_ema(state, "net", torch.tensor(0.5), torch.tensor(False))
    assert state["ema/net/w"].item() == 1.5


def test_an_average_lies_and_is_cut_as_its_parameter():
    leaf = Leaf((4, 8), Constant(1.0), ("in", "out"))
    assert ema_spec("net", {"w": leaf}) == {"ema/net/w": Leaf((4, 8), Constant(0.0), ("in", "out"))}
