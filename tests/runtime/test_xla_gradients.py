"""Gradients that are written by hand for XLA, on eight devices, against float64."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.processes import run_on_xla
from vqim.runtime.settings import XlaSettings


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pytest.importorskip("torch_xla")
    path = tmp_path_factory.mktemp("gradients") / "results.npz"
    run_on_xla("tests.runtime.xla_gradient_checks", path, num_devices=8)
    return dict(np.load(path))


def expected(results):
    """Gradients of a dense layer in float64; the inputs are numbers that bfloat16 holds."""
    x, weights, kernel = (results[name].astype(np.float64) for name in ("x", "weights", "kernel"))
    return {"x": weights @ kernel.T, "kernel": np.einsum("bti,bto->io", x, weights), "bias": weights.sum((0, 1))}


def error(results, dtype, reduced, name):
    """Of a gradient, relative to its largest element."""
    exact = expected(results)[name]
    return np.abs(results[f"{dtype} {reduced} {name}"] - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize("name", ["kernel", "bias"])
def test_gradients_of_a_bfloat16_product_are_float32s_where_summed_in_float32(results, name):
    assert error(results, torch.bfloat16, "float32", name) < 1e-6
    for reduced in (None, "bfloat16"):
        assert 1e-4 < error(results, torch.bfloat16, reduced, name) < 1e-2


@pytest.mark.parametrize("name", ["kernel", "bias"])
def test_gradients_of_a_float32_product_are_rounded_where_summed_in_bfloat16(results, name):
    assert 1e-4 < error(results, torch.float32, "bfloat16", name) < 1e-2
    for reduced in (None, "float32"):
        assert error(results, torch.float32, reduced, name) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_dtype_of_weight_gradients_changes_no_result_nor_gradient_of_inputs(results, dtype):
    for name in ("loss", "x"):
        for reduced in ("float32", "bfloat16"):
            np.testing.assert_array_equal(results[f"{dtype} {reduced} {name}"], results[f"{dtype} None {name}"])


@pytest.mark.parametrize("with_mask", [True, False])
def test_gelu_with_dropout_and_its_gradient_are_those_of_torch_under_the_same_mask(results, with_mask):
    x = torch.from_numpy(results["gelu x"]).double().requires_grad_()
    factor = torch.from_numpy(results["gelu mask True"] / 0.7 if with_mask else np.ones(x.shape))
    assert 0.6 < results["gelu mask True"].mean() < 0.8
    out = F.gelu(x) * factor
    (grad,) = torch.autograd.grad(out, x, torch.from_numpy(results["gelu weights"]).double())
    np.testing.assert_allclose(results[f"gelu out {with_mask}"], out.detach(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(results[f"gelu grad {with_mask}"], grad, rtol=1e-6, atol=2e-6)


def test_another_dtype_of_gradients_is_refused():
    with pytest.raises(ValueError, match="gradient_dtype must be one of 'float32', 'bfloat16', got 'float16'"):
        XlaSettings(gradient_dtype="float16")
