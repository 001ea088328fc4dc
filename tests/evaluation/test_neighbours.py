"""Precision, recall, density and coverage beside loops over all pairs, and sets whose answers are plain."""
import numpy as np
import pytest

from vqim.evaluation import neighbours
from vqim.evaluation.neighbours import compare_neighbours


def draw(count, seed, mean=0.0):
    return (np.random.default_rng(seed).standard_normal((count, 5)) + mean).astype(np.float32)


def slow(real, generated, k, k_density):
    """The papers' definitions, pair by pair."""
    def distance(x, y):
        return np.linalg.norm(x.astype(np.float64) - y.astype(np.float64))

    def radius(rows, i, k):
        return sorted(distance(rows[i], other) for j, other in enumerate(rows) if j != i)[k - 1]

    balls = [radius(real, i, k) for i in range(len(real))]
    wide = [radius(real, i, k_density) for i in range(len(real))]
    others = [radius(generated, j, k) for j in range(len(generated))]
    near = np.array([[distance(x, y) for y in generated] for x in real])
    return (np.mean([any(near[i, j] <= balls[i] for i in range(len(real))) for j in range(len(generated))]),
            np.mean([any(near[i, j] <= others[j] for j in range(len(generated))) for i in range(len(real))]),
            sum(near[i, j] <= wide[i] for i in range(len(real)) for j in range(len(generated)))
            / (k_density * len(generated)),
            np.mean([any(near[i, j] <= wide[i] for j in range(len(generated))) for i in range(len(real))]))


def values(found):
    return found.precision, found.recall, found.density, found.coverage


def test_all_four_are_those_of_loops_over_pairs():
    real, generated = draw(60, 0), draw(45, 1, 0.8)
    expected = slow(real, generated, 3, 5)
    assert values(compare_neighbours(real, generated)) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected[0] < 1 and 0 < expected[1] < 1 and 0 < expected[3] < 1


def test_blocks_of_distances_change_nothing(monkeypatch):
    real, generated = draw(60, 0), draw(45, 1, 0.8)
    expected = compare_neighbours(real, generated)
    monkeypatch.setattr(neighbours, "_BLOCK_VALUES", 7 * 45)
    assert compare_neighbours(real, generated) == expected


def test_a_set_covers_itself():
    real = draw(60, 0)
    found = compare_neighbours(real, real)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)


def test_sets_that_are_far_apart_do_not_cover_each_other():
    assert values(compare_neighbours(draw(60, 0), draw(60, 1, 50.0))) == (0, 0, 0, 0)


def test_identical_images_cover_each_other_and_no_others():
    same = np.tile(draw(1, 0), (20, 1))
    assert values(compare_neighbours(same, same)) == (1, 1, 20 / 5, 1)
    assert values(compare_neighbours(same, same + np.float32(1))) == (0, 0, 0, 0)


def test_fewer_images_than_neighbours_are_refused():
    with pytest.raises(ValueError, match="at least 6 images in each set, got 5 and 60"):
        compare_neighbours(draw(5, 0), draw(60, 1))


def test_sets_of_other_features_are_refused():
    with pytest.raises(ValueError, match="the same features, got 5 and 4"):
        compare_neighbours(draw(9, 0), draw(9, 1)[:, :4])
