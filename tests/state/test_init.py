"""Initial values: any slice is that slice of the whole, whatever else is drawn; their distributions."""
import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqim.state.init import CHUNK, Constant, FromArray, Normal, Uniform, full_index, xavier_uniform


def draw_all(init, shape, name="params/net/kernel", seed=0):
    return init(name, shape, seed, full_index(shape))


@st.composite
def slices_of_stacks(draw):
    """(init, shape, index): up to four dimensions, of which up to two count independent arrays."""
    shape = tuple(draw(st.lists(st.integers(1, 7), max_size=4)))
    num_stacked = draw(st.integers(0, min(2, len(shape))))
    bounds = [sorted((draw(st.integers(0, size)), draw(st.integers(0, size)))) for size in shape]
    init = draw(st.sampled_from([Normal(0.5, num_stacked), Uniform(0.5, num_stacked), Constant(0.5)]))
    return init, shape, tuple(slice(low, high) for low, high in bounds)


@given(slices_of_stacks(), st.integers(0, 3))
def test_a_slice_drawn_alone_is_the_slice_of_the_whole(case, seed):
    init, shape, index = case
    np.testing.assert_array_equal(init("w", shape, seed, index), draw_all(init, shape, "w", seed)[index])


@settings(max_examples=25)
@given(st.integers(0, 4 * 60), st.integers(1, 60), st.integers(0, 999), st.integers(1, 1000))
def test_a_slice_over_several_runs_is_the_slice_of_the_whole(first_row, num_rows, first_column, num_columns):
    shape = (240, 1000)  # almost four runs, whose ends are inside of rows
    assert 3 * CHUNK < math.prod(shape) < 4 * CHUNK
    index = (slice(first_row, min(first_row + num_rows, 240)),
             slice(first_column, min(first_column + num_columns, 1000)))
    np.testing.assert_array_equal(Normal()("w", shape, 0, index), draw_all(Normal(), shape, "w")[index])


def test_a_row_longer_than_a_run_is_drawn_whole():
    shape = (2, 3 * CHUNK + 5)
    whole = draw_all(Uniform(1.0), shape)
    np.testing.assert_array_equal(Uniform(1.0)("params/net/kernel", shape, 0, (slice(1, 2), slice(None))), whole[1:])
    assert len(np.unique(whole)) > 0.97 * whole.size  # of 2^24 values; no run is drawn twice


def test_a_value_is_the_documented_run_of_philox():
    # Written out from the module's docstring: a change here would change every run that anyone has begun.
    shape, position = (3, CHUNK // 2, 4), (2, CHUNK // 2 - 1, 3)
    in_layer = np.ravel_multi_index(position[1:], shape[1:])
    run, within = divmod(int(in_layer), CHUNK)
    assert run == 1
    digest = hashlib.sha256(f"7\nparams/net/kernel\n2\n{run}".encode()).digest()
    philox = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    expected = np.float32(0.02) * philox.standard_normal(CHUNK, np.float32)[within]
    assert draw_all(Normal(0.02, num_stacked=1), shape, seed=7)[position] == expected


def test_values_are_those_of_the_first_release():
    # NumPy promises Philox's bits, not how it makes normal draws of them: a NumPy that changes it fails here.
    np.testing.assert_allclose(draw_all(Normal(1.0), (3,), "w"), [1.6399648, -0.1404284, -0.0848964], rtol=1e-5)
    np.testing.assert_allclose(draw_all(Uniform(1.0), (3,), "w"), [0.3603919, -0.1634630, -0.8746217], rtol=1e-5)


def test_a_layer_of_a_stack_does_not_depend_on_the_number_of_layers():
    few, many = draw_all(Normal(1.0, 1), (2, 5, 3)), draw_all(Normal(1.0, 1), (4, 5, 3))
    np.testing.assert_array_equal(few, many[:2])


def test_the_first_layer_of_a_stack_is_the_block_on_its_own():
    np.testing.assert_array_equal(draw_all(Normal(1.0, 1), (2, 5, 3))[0], draw_all(Normal(1.0), (5, 3)))


@pytest.mark.parametrize("init", [Normal(1.0, 1), Uniform(1.0, 1)])
def test_layers_names_and_seeds_have_different_values(init):
    shape = (3, 50)
    draws = [draw_all(init, shape, name, seed) for name in ("a", "b") for seed in (0, 1)]
    rows = np.concatenate(draws)
    assert len(np.unique(rows)) == rows.size
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlation).max() < 5.5 / math.sqrt(50)


def test_normal_has_mean_zero_its_deviation_and_gaussian_tails():
    values = draw_all(Normal(0.02), (400, 500)) / 0.02
    n = values.size
    assert abs(values.mean()) < 5 / math.sqrt(n)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / n)
    beyond_2 = math.erfc(2 / math.sqrt(2))
    assert abs((np.abs(values) > 2).mean() - beyond_2) < 5 * math.sqrt(beyond_2 / n)


def test_uniform_fills_its_interval_evenly():
    values = draw_all(Uniform(0.3), (400, 500))
    assert -0.3 <= values.min() < -0.2999 and 0.2999 < values.max() <= 0.3
    counts, _ = np.histogram(values, bins=20, range=(-0.3, 0.3))
    assert counts.sum() == 200_000
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 50  # chi-square, 19 degrees of freedom: p = 1e-4


def test_xavier_has_the_variance_of_glorot_and_bengio():
    assert xavier_uniform(300, 100).bound ** 2 / 3 == pytest.approx(2 / 400)


def test_constant_is_its_value_everywhere():
    np.testing.assert_array_equal(Constant(1.5)("w", (2, 3), 0, (slice(1, 2), slice(0, 2))), [[1.5, 1.5]])


def test_an_array_of_another_shape_is_refused():
    init = FromArray(lambda: np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"frozen/w: expected an array of shape \(3, 2\), the loaded one has \(2, 3\)"):
        init("frozen/w", (3, 2), 0, full_index((3, 2)))


def test_a_given_array_is_sliced():
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(FromArray(lambda: array)("w", (2, 3), 0, (slice(1, 2), slice(1, 3))), [[4.0, 5.0]])


def test_slices_with_gaps_are_refused():
    with pytest.raises(ValueError, match="w: slices of an initial value must have step 1"):
        Normal()("w", (4,), 0, (slice(0, 4, 2),))
