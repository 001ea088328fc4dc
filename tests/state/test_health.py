"""Values that are not finite: found, remembered with the first bad step, and never let through again."""
import pytest
import torch

from vqim.runtime.torch import TorchRuntime
from vqim.state.health import FIRST_BAD_STEP, IS_BAD, check_finite, health_spec
from vqim.training.state import start

NAMES = ["loss", "kernel", "bias"]


@pytest.fixture(name="state")
def healthy_state():
    return start(health_spec(NAMES), 0, TorchRuntime()).arrays


def check(state, step, **bad):
    """Checks three tensors, of which those named hold a value that is not finite."""
    tensors = {"loss": torch.tensor(1.0), "kernel": torch.ones(3, 2), "bias": torch.zeros(2)}
    for name, value in bad.items():
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[-1] = value
    return check_finite(state, [tensors[name] for name in NAMES], torch.tensor(step, dtype=torch.int32)).item()


def test_finite_values_pass_and_leave_the_flags(state):
    assert check(state, 0) is True
    assert state[FIRST_BAD_STEP].item() == -1
    assert state[IS_BAD].tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_names_its_tensor_and_step(state, value):
    check(state, 0)
    assert check(state, 1, kernel=value) is False
    assert state[FIRST_BAD_STEP].item() == 1
    assert state[IS_BAD].tolist() == [0, 1, 0]


def test_step_zero_can_be_the_bad_one(state):
    check(state, 0, loss=float("nan"))
    assert state[FIRST_BAD_STEP].item() == 0


def test_nothing_passes_after_a_bad_step(state):
    check(state, 4, bias=float("nan"))
    assert check(state, 5) is False


def test_the_first_bad_step_is_remembered_not_later_ones(state):
    check(state, 4, bias=float("nan"))
    check(state, 5, loss=float("inf"), kernel=float("inf"))
    assert state[FIRST_BAD_STEP].item() == 4
    assert state[IS_BAD].tolist() == [0, 0, 1]


def test_flags_keep_their_dtypes(state):
    check(state, 4, bias=float("nan"))
    assert state[FIRST_BAD_STEP].dtype == state[IS_BAD].dtype == torch.int32


def test_large_bfloat16_values_are_finite(state):
    large = torch.full((1000,), 3e17, dtype=torch.bfloat16)
    assert check_finite(state, [large, large, large], torch.tensor(0, dtype=torch.int32))


def test_a_norm_beyond_float32_counts_as_not_finite(state):
    assert check(state, 3, kernel=1e30) is False
