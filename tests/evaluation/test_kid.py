"""KID beside equation (4) written out pair by pair, and what is known of it in expectation."""
import itertools

import numpy as np
import pytest

from vqim.evaluation.kid import kernel_distance


def draw(count, seed, mean=0.0):
    return (np.random.default_rng(seed).standard_normal((count, 6)) + mean).astype(np.float32)


def kernel(x, y):
    return (float(np.dot(x.astype(np.float64), y.astype(np.float64))) / len(x) + 1) ** 3


def test_a_subset_of_all_images_has_the_value_of_equation_4_pair_by_pair():
    a, b = draw(15, 0), draw(15, 1, 0.5)
    within = sum(kernel(x, y) for rows in (a, b) for x, y in itertools.permutations(rows, 2)) / (15 * 14)
    across = np.mean([kernel(x, y) for x in a for y in b])
    found, spread = kernel_distance(a, b, num_subsets=3)
    assert found == pytest.approx(within - 2 * across, rel=1e-12)
    assert spread == pytest.approx(0, abs=1e-12)  # every subset is the whole set


def test_subsets_are_those_that_torch_fidelity_draws():
    a, b = draw(50, 0), draw(40, 1, 0.5)
    generator, values = np.random.RandomState(2020), []
    for _ in range(4):
        rows, others = generator.choice(50, 20, replace=False), generator.choice(40, 20, replace=False)
        values.append(kernel_distance(a[rows], b[others], num_subsets=1)[0])
    found = kernel_distance(a, b, num_subsets=4, subset_size=20)
    assert found == pytest.approx((np.mean(values), np.std(values)), rel=1e-12)


def test_kid_is_unbiased_for_few_images():
    # Two sets from one distribution: the mean over many draws is 0 within four standard errors.
    values = [kernel_distance(draw(10, 2 * seed), draw(10, 2 * seed + 1), num_subsets=1)[0] for seed in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


def test_one_image_is_refused():
    with pytest.raises(ValueError, match="at least 2 images in each set, got 1 and 5"):
        kernel_distance(draw(1, 0), draw(5, 1))


def test_sets_of_other_features_are_refused():
    with pytest.raises(ValueError, match="the same features, got 6 and 5"):
        kernel_distance(draw(9, 0), draw(9, 1)[:, :5])
