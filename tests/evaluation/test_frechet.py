"""Means, covariances and Frechet distances beside closed forms, NumPy and a root of a matrix by Newton's method."""
import numpy as np
import pytest

from vqim.evaluation.frechet import Gaussian, Moments, frechet_distance


def features(count, width=12, seed=0, shift=0.0):
    """Rows with correlated, skewed, non-negative features, as after a rectifier."""
    generator = np.random.default_rng(seed)
    mixed = generator.standard_normal((count, width)) @ generator.standard_normal((width, width))
    return (np.maximum(mixed, 0) + shift).astype(np.float32)


def moments(rows, batch_size=37):
    found = Moments(rows.shape[1])
    for start in range(0, len(rows), batch_size):
        found.add(rows[start:start + batch_size])
    return found


def slow_root(matrix):
    """The root of a matrix with positive eigenvalues, by Denman and Beavers' iteration."""
    root, inverse = matrix, np.eye(len(matrix))
    for _ in range(60):
        root, inverse = (root + np.linalg.inv(inverse)) / 2, (inverse + np.linalg.inv(root)) / 2
    return root


def test_moments_are_numpys_mean_and_covariance():
    rows = features(1500)
    found = moments(rows).gaussian()
    np.testing.assert_allclose(found.mean_D, rows.mean(0, dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(found.covariance_DD, np.cov(rows.T.astype(np.float64)), rtol=1e-11, atol=1e-12)
    assert found.count == 1500


@pytest.mark.parametrize("batch_size", [1, 100, 512, 700, 1500])
def test_moments_do_not_depend_on_the_batch_size_by_a_bit(batch_size):
    rows = features(1500)
    found, expected = moments(rows, batch_size).gaussian(), moments(rows, 64).gaussian()
    np.testing.assert_array_equal(found.mean_D, expected.mean_D)
    np.testing.assert_array_equal(found.covariance_DD, expected.covariance_DD)


def test_moments_in_another_order_are_the_same_to_1e_minus_9():
    rows = features(1500)
    found, expected = moments(rows[::-1]).gaussian(), moments(rows).gaussian()
    np.testing.assert_allclose(found.covariance_DD, expected.covariance_DD, rtol=1e-9, atol=1e-9)


def test_a_mean_of_a_million_costs_the_covariance_no_digits():
    rows = np.random.default_rng(0).standard_normal((3000, 4))
    found = moments(rows + 2.0**20).gaussian()
    np.testing.assert_allclose(found.covariance_DD, np.cov(rows.T), rtol=1e-8, atol=1e-8)


def test_moments_go_on_after_a_break_with_the_same_bits():
    rows = features(1500)
    first, second = moments(rows[:900]), Moments(12)
    first.gaussian()  # a look at it in between changes nothing
    second.restore({name: np.copy(array) for name, array in first.state().items()})
    second.add(rows[900:])
    np.testing.assert_array_equal(second.gaussian().covariance_DD, moments(rows).gaussian().covariance_DD)


def test_distance_of_diagonal_gaussians_has_its_closed_form():
    variances, others = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.25])
    a = Gaussian(np.array([0.0, 1.0, 2.0]), np.diag(variances), 10)
    b = Gaussian(np.array([3.0, 1.0, 0.0]), np.diag(others), 10)
    expected = 9 + 4 + np.sum((np.sqrt(variances) - np.sqrt(others)) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-13)


def test_distance_is_that_of_the_papers_formula_with_a_slow_root():
    a, b = moments(features(400)).gaussian(), moments(features(400, seed=1)).gaussian()
    root = slow_root(a.covariance_DD @ b.covariance_DD)
    expected = np.sum((a.mean_D - b.mean_D) ** 2) + np.trace(a.covariance_DD + b.covariance_DD - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-10)


def test_singular_covariances_have_the_distance_of_their_spans():
    # Rank 1 each, on the same line: standard deviations 2 and 5 along a unit vector of 40 dimensions.
    line = np.full(40, 1 / np.sqrt(40))
    a, b = (Gaussian(np.zeros(40), deviation**2 * np.outer(line, line), 9) for deviation in (2.0, 5.0))
    assert frechet_distance(a, b) == pytest.approx(9.0, rel=1e-12)
    across = np.zeros(40)
    across[:2] = np.sqrt(0.5), -np.sqrt(0.5)  # at right angles: nothing overlaps
    c = Gaussian(np.zeros(40), 9.0 * np.outer(across, across), 9)
    assert frechet_distance(a, c) == pytest.approx(4.0 + 9.0, rel=1e-12)


def test_distance_of_fewer_images_than_features_to_themselves_is_0():
    one = moments(features(9, width=64)).gaussian()
    assert frechet_distance(one, one) <= 1e-12 * np.trace(one.covariance_DD)


def test_identical_images_are_at_the_distance_of_their_mean_and_the_others_variance():
    rows = features(300)
    same = moments(np.tile(rows[:1], (20, 1))).gaussian()
    other = moments(rows).gaussian()
    expected = np.sum((same.mean_D - other.mean_D) ** 2) + np.trace(other.covariance_DD)
    assert frechet_distance(same, other) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [0, 1])
def test_one_image_has_no_covariance(count):
    with pytest.raises(ValueError, match=f"a covariance needs at least 2 images, got {count}"):
        moments(features(300)[:count]).gaussian()


def test_features_that_are_not_finite_are_refused():
    rows = features(30)
    rows[7, 3] = np.nan
    with pytest.raises(ValueError, match="features must be finite"):
        moments(rows)


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"features must be \[images, 12\], got \(5, 11\)"):
        Moments(12).add(features(5, width=11))
    with pytest.raises(ValueError, match="the same features, got 12 and 11"):
        frechet_distance(moments(features(30)).gaussian(), moments(features(30, width=11)).gaussian())
