"""The split product on a matrix unit that rounds its factors to bfloat16, against float64."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqim.runtime import precision
from vqim.runtime.precision import split_matmul


def one_pass(a, b):
    """A TPU's float32 product at default precision: factors rounded to bfloat16, sums in float32."""
    return a.bfloat16().float() @ b.bfloat16().float()


class TPU:
    """torch, but for its matrix product."""

    matmul = staticmethod(one_pass)

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture(autouse=True, scope="module")
def matrix_unit():
    """Products of the split are made in one pass."""
    precision.torch = TPU()
    yield
    precision.torch = torch


def draw(seed, rows, inner, columns, spread):
    """Factors whose rows, columns and entries differ in size by up to 10^spread."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rows, inner)), rng.normal(size=(inner, columns))
    a *= 10 ** rng.uniform(-spread, spread, (rows, 1)) * 10 ** rng.uniform(-1, 1, a.shape)
    b *= 10 ** rng.uniform(-spread, spread, (1, columns)) * 10 ** rng.uniform(-1, 1, b.shape)
    return torch.from_numpy(a.astype(np.float32)), torch.from_numpy(b.astype(np.float32))


def error(found, a, b):
    """The largest error relative to the size of the factors, |a| |b|: what rounding of float32 is relative to."""
    exact = a.double() @ b.double()
    sizes = torch.linalg.vector_norm(a.double(), dim=-1)[:, None] * torch.linalg.vector_norm(b.double(), dim=0)
    return ((found.double() - exact).abs() / sizes).max().item()


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 80), st.integers(1, 30), st.floats(0, 8))
def test_the_split_product_is_as_exact_as_float32s(seed, rows, inner, columns, spread):
    a, b = draw(seed, rows, inner, columns, spread)
    assert error(split_matmul(a, b), a, b) < 4 * 2**-24


def test_one_pass_is_thousands_of_times_less_exact():
    a, b = draw(0, 500, 32, 500, spread=0)
    split, whole = error(split_matmul(a, b), a, b), error(a @ b, a, b)
    assert split < 2 * whole
    assert error(one_pass(a, b), a, b) > 1000 * split


def test_parts_are_bfloat16s_numbers_and_sum_to_their_number():
    x = torch.cat([2 * torch.rand(10000) - 1, torch.tensor([0.0, 1.0, -1.0, 2.0**-27, 1 - 2.0**-24])])
    parts = precision._parts(x)
    for part in parts:
        assert torch.equal(part.bfloat16().float(), part)
    assert (sum(part.double() for part in parts) - x.double()).abs().max() <= 2.0**-27


def test_zeros_give_zeros_and_leading_dimensions_are_kept():
    a, b = torch.randn(2, 3, 5, 7), torch.randn(7, 4)
    a[1, 2], b[:, 3] = 0, 0
    out = split_matmul(a, b)
    assert out.shape == (2, 3, 5, 4)
    assert not out[1, 2].any() and not out[..., 3].any()
    torch.testing.assert_close(out, a @ b, rtol=1e-5, atol=1e-6)
