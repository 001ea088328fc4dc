"""Dense layers and norms against torch's own, and what dropout promises."""
import math

import pytest
import torch
from torch import nn

from vqim.contracts.context import Context
from vqim.nn.layers import Dense, LayerNorm, check_positive, check_rate, dropout
from vqim.nn.module import apply
from vqim.runtime.torch import TorchKernels
from vqim.state.init import full_index


def test_dense_is_torchs_linear_with_the_kernel_transposed(draw_params, context):
    params, x = draw_params(Dense(5, 3)), torch.randn(2, 4, 5)
    linear = nn.Linear(5, 3)
    linear.load_state_dict({"weight": params["kernel_IO"].T, "bias": params["bias_O"]})
    torch.testing.assert_close(apply(Dense(5, 3).forward, params, x, context), linear(x))


def test_dense_starts_as_glorot_with_zero_biases():
    leaves = dict(Dense(300, 100).named_parameters())
    kernel, bias = leaves["kernel_IO"].leaf, leaves["bias_O"].leaf
    values = kernel.init("w", kernel.shape, 0, full_index(kernel.shape))
    assert values.var() == pytest.approx(2 / 400, rel=0.03)
    assert not bias.init("b", bias.shape, 0, full_index(bias.shape)).any()


def test_dense_computes_in_the_contexts_dtype(draw_params):
    params, x = draw_params(Dense(5, 3)), torch.randn(2, 5)
    out = apply(Dense(5, 3).forward, params, x, Context(TorchKernels(), torch.bfloat16))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), x @ params["kernel_IO"] + params["bias_O"], rtol=0.03, atol=0.03)


def test_layer_norm_is_torchs(draw_params, context):
    params, x = draw_params(LayerNorm(6)), 3 + 2 * torch.randn(2, 4, 6)
    reference = nn.LayerNorm(6, eps=1e-6)
    reference.load_state_dict({"weight": params["gain_D"], "bias": params["bias_D"]})
    torch.testing.assert_close(apply(LayerNorm(6).forward, params, x, context), reference(x))


def test_layer_norm_of_a_bfloat16_model_is_computed_in_float32(draw_params):
    # Values around 100 with deviation 1: in bfloat16, whose steps are 0.5 there, they would be lost.
    params, x = draw_params(LayerNorm(256)), 100 + torch.randn(2, 256)
    out = apply(LayerNorm(256).forward, params, x, Context(TorchKernels(), torch.bfloat16))
    exact = x.double()
    exact = (exact - exact.mean(-1, keepdim=True)) / exact.std(-1, correction=0, keepdim=True)
    expected = exact * params["gain_D"] + params["bias_D"]
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-4)


def test_dropout_zeroes_its_rate_and_scales_the_rest(training_context):
    x = torch.full((300, 1000), 2.0)
    out = dropout(x, 0.3, training_context(0), "activation")
    kept = out != 0
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 2 / 0.7))
    assert abs((~kept).float().mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / x.numel())


def test_dropout_entries_are_independent_of_their_neighbours(training_context):
    kept = (dropout(torch.ones(1000, 1000), 0.5, training_context(1), "activation") != 0).float()
    for pairs in (kept[1:] * kept[:-1], kept[:, 1:] * kept[:, :-1]):
        assert abs(pairs.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / pairs.numel())


def test_dropout_draws_the_same_mask_for_the_same_key(training_context):
    x = torch.ones(100)
    torch.testing.assert_close(dropout(x, 0.5, training_context(4), "a"), dropout(x, 0.5, training_context(4), "a"),
                               rtol=0, atol=0)


@pytest.mark.parametrize(("key", "purpose"), [(5, "a"), (4, "b")])
def test_dropout_draws_another_mask_for_another_key_or_purpose(training_context, key, purpose):
    x = torch.ones(1000)
    one, other = dropout(x, 0.5, training_context(4), "a"), dropout(x, 0.5, training_context(key), purpose)
    assert 400 < (one != other).sum() < 600


def test_dropout_is_the_identity_in_evaluation_and_at_rate_zero(context, training_context):
    x = torch.randn(100)
    assert dropout(x, 0.5, context, "a") is x
    assert dropout(x, 0.0, training_context(0), "a") is x


def test_dropout_keeps_the_dtype(training_context):
    assert dropout(torch.ones(4, dtype=torch.bfloat16), 0.5, training_context(0), "a").dtype == torch.bfloat16


def test_the_gradient_of_dropout_passes_where_values_did(training_context):
    x = torch.ones(100, requires_grad=True)
    out = dropout(x, 0.5, training_context(0), "a")
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach())


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan])
def test_rates_outside_of_their_range_are_refused(rate):
    with pytest.raises(ValueError, match="dropout_rate must be at least 0 and below 1, got"):
        check_rate("dropout_rate", rate)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3"])
def test_sizes_that_are_no_positive_whole_numbers_are_refused(value):
    with pytest.raises(ValueError, match="width must be a whole number of at least 1, got"):
        check_positive(width=value)
