"""How two sets of features cover each other, by balls around images that reach to their nearest neighbours.

Precision and recall as in Kynkaanniemi et al. (2019), density and coverage as in Naeem et al. (2020).

    N real images, M generated images, D features; R rows of a block
"""
import dataclasses
from collections.abc import Iterator

import numpy as np

PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5
_BLOCK_VALUES = 1 << 23  # 64 MiB of distances at a time
_SAME = 1e-12  # squared distances below this share of the squared lengths are rounding


@dataclasses.dataclass(frozen=True)
class Neighbourhood:
    """What `compare_neighbours` finds.

    Attributes:
      precision: the share of generated images that lie in a ball around a real one.
      recall: the share of real images that lie in a ball around a generated one.
      density: the mean number of real images' balls that hold a generated image, over the number of neighbours.
      coverage: the share of real images whose ball holds a generated image.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def compare_neighbours(
    real_ND: np.ndarray, generated_MD: np.ndarray, precision_neighbours: int = PRECISION_NEIGHBOURS,
    density_neighbours: int = DENSITY_NEIGHBOURS,
) -> Neighbourhood:
    """All four measures, with blocks of distances of at most 64 MiB.

    A ball reaches to its centre's k-th nearest neighbour in its own set, and holds its surface. (`prdc` leaves the
    surface out. That matters only between equal images, of which it would say that they do not cover each other.)

    Args:
      real_ND: features of real images.
      generated_MD: features of generated images, or reconstructions.
      precision_neighbours: the number of neighbours for precision and recall; 3 in the paper and in ADM's evaluator.
      density_neighbours: the number of neighbours for density and coverage; 5 in the paper.

    Raises:
      ValueError: a set has no more images than neighbours, or widths differ.
    """
    if real_ND.shape[1] != generated_MD.shape[1]:
        raise ValueError(f"both sets must have the same features, got {real_ND.shape[1]} and {generated_MD.shape[1]}")
    needed = max(precision_neighbours, density_neighbours) + 1
    if min(len(real_ND), len(generated_MD)) < needed:
        raise ValueError(f"precision, recall, density and coverage need at least {needed} images in each set, got "
                         f"{len(real_ND)} and {len(generated_MD)}")
    real_ND, generated_MD = (features.astype(np.float64) for features in (real_ND, generated_MD))
    real_radii = _radii(real_ND, (precision_neighbours, density_neighbours))
    generated_radii_M, = _radii(generated_MD, (precision_neighbours,))
    in_real_M, in_generated_N = np.zeros(len(generated_MD), bool), np.zeros(len(real_ND), bool)
    covered_N, num_balls = np.zeros(len(real_ND), bool), 0
    for rows, distances_RM in _distances(real_ND, generated_MD):
        in_real_M |= (distances_RM <= real_radii[0][rows, None]).any(0)
        in_generated_N[rows] = (distances_RM <= generated_radii_M).any(1)
        inside_RM = distances_RM <= real_radii[1][rows, None]
        num_balls += int(np.count_nonzero(inside_RM))
        covered_N[rows] = inside_RM.any(1)
    return Neighbourhood(float(in_real_M.mean()), float(in_generated_N.mean()),
                         num_balls / (density_neighbours * len(generated_MD)), float(covered_N.mean()))


def _radii(features_ND: np.ndarray, numbers: tuple[int, ...]) -> list[np.ndarray]:
    """Squared distances_N to the k-th nearest other image of the set, for each number k."""
    found = [np.empty(len(features_ND)) for _ in numbers]
    for rows, distances_RN in _distances(features_ND, features_ND):
        distances_RN.partition(sorted(numbers), axis=1)  # the 0-th nearest is the image itself
        for radii_N, number in zip(found, numbers, strict=True):
            radii_N[rows] = distances_RN[:, number]
    return found


def _distances(a_ND: np.ndarray, b_MD: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields slices of a's rows with their squared distances_RM to all of b."""
    lengths_N, lengths_M = ((x * x).sum(1) for x in (a_ND, b_MD))
    num_rows = max(1, _BLOCK_VALUES // len(b_MD))
    for start in range(0, len(a_ND), num_rows):
        rows = slice(start, start + num_rows)
        lengths_RM = lengths_N[rows, None] + lengths_M
        distances_RM = a_ND[rows] @ b_MD.T
        distances_RM *= -2
        distances_RM += lengths_RM
        distances_RM[distances_RM < _SAME * lengths_RM] = 0.0  # equal images are at distance 0, not at rounding
        yield rows, distances_RM
