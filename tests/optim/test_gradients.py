import math

import numpy as np
import pytest
import torch

from vqim.optim.gradients import clip_by_global_norm, combine_norms, tensor_norm


def global_norm(tensors):
    return combine_norms([tensor_norm(tensor) for tensor in tensors])


def test_the_norm_of_parts_is_that_of_all_elements_in_one_vector():
    tensors = [torch.tensor([[3.0, 0.0]]), torch.tensor(4.0), torch.tensor([12.0], dtype=torch.bfloat16)]
    assert global_norm(tensors).item() == 13.0
    assert global_norm([]).item() == 0.0


def test_long_gradients_are_scaled_to_the_norm_and_short_ones_left_alone():
    grads = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}
    norm = global_norm(grads.values())
    assert norm.item() == 5.0
    clipped = clip_by_global_norm(grads, norm, 1.0)
    np.testing.assert_allclose([clipped["a"].item(), clipped["b"].item()], [0.6, 0.8], rtol=1e-6)
    untouched = clip_by_global_norm(grads, norm, 5.5)
    assert untouched["a"].item() == 3.0 and untouched["b"].item() == 4.0


def test_zero_gradients_stay_zero():
    grads = {"a": torch.zeros(3)}
    norm = global_norm(grads.values())
    assert norm.item() == 0 and clip_by_global_norm(grads, norm, 1.0)["a"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])  # the square of the last overflows float32
def test_a_norm_that_is_not_finite_cannot_be_mistaken_for_small_gradients(bad):
    grads = {"a": torch.tensor([bad, 1.0]), "b": torch.ones(2)}
    norm = global_norm(grads.values())
    clipped = clip_by_global_norm(grads, norm, 1.0)
    assert not torch.isfinite(norm)
    assert all(torch.isnan(grad).all() for grad in clipped.values())


def test_max_norm_must_be_positive():
    with pytest.raises(ValueError, match="max_norm must be positive, got 0"):
        clip_by_global_norm({}, torch.tensor(0.0), 0)
