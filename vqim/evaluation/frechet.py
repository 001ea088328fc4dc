"""Frechet distances between sets of features, from sums that come in batches of any size.

Heusel et al. (2017) call this distance between features of their Inception FID (section 3): that of the normal
distributions with the sets' means and covariances. All is on the host, in float64.

    B rows of a batch, N rows of a set, D features
"""
import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

_BLOCK_ROWS = 1024  # few enough to be held four times, enough for an efficient matrix product
_BLOCK_COLUMNS = 256  # of a product that takes the place of its factor


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """The mean and covariance of a set of features.

    Attributes:
      mean_D: float64.
      covariance_DD: float64, with the divisor N - 1.
      count: the number N of the set's rows; 0 where a file does not say it.
    """

    mean_D: np.ndarray
    covariance_DD: np.ndarray
    count: int

    def __post_init__(self) -> None:
        width = len(self.mean_D)
        if self.mean_D.ndim != 1 or self.covariance_DD.shape != (width, width):
            raise ValueError(f"covariance_DD must be [{width}, {width}] for {width} means, got "
                             f"{self.covariance_DD.shape}")
        if not (np.isfinite(self.mean_D).all() and np.isfinite(self.covariance_DD).all()):
            raise ValueError("mean_D and covariance_DD must be finite, got NaN or infinity")


class Moments:
    """Adds up mean and covariance of features, which never have to be held all at once.

    Rows are gathered in blocks of a fixed size, whatever the size of the batches: the result does not depend on it by a
    single bit. Blocks are centred and joined by the formula of Chan et al. (1979), so that a large mean costs no
    digits. Memory: two matrices [D, D].

    Args:
      width: the number D of features.
      block_rows: the number of rows in a block.
    """

    def __init__(self, width: int, block_rows: int = _BLOCK_ROWS):
        self.count, self._block_rows = 0, block_rows
        self._mean_D = np.zeros(width)
        self._products_DD = np.zeros((width, width))
        self._waiting: list[np.ndarray] = []
        self._num_waiting = 0

    @property
    def num_waiting(self) -> int:
        """The number of rows that wait for their block, and are not in `count` yet."""
        return self._num_waiting

    @property
    def width(self) -> int:
        """The number of features."""
        return len(self._mean_D)

    def add(self, features_BD: np.ndarray) -> None:
        """Adds rows; ValueError if they have another width or are not finite."""
        rows_BD = check_features(features_BD, self.width)
        self._waiting.append(rows_BD.copy())  # the caller may reuse its array
        self._num_waiting += len(rows_BD)
        if self._num_waiting < self._block_rows:
            return
        rows_BD = np.concatenate(self._waiting)
        whole = len(rows_BD) // self._block_rows * self._block_rows
        for start in range(0, whole, self._block_rows):
            self.count, self._mean_D, self._products_DD = self._joined(rows_BD[start:start + self._block_rows])
        self._waiting, self._num_waiting = [rows_BD[whole:]], len(rows_BD) - whole

    def gaussian(self) -> Gaussian:
        """Mean and covariance of all rows so far.

        Raises:
          ValueError: there are fewer than two rows, which have no covariance.
        """
        # More rows may come: what waits for its block goes on waiting.
        count, mean_D, products_DD = (self._joined(np.concatenate(self._waiting)) if self._num_waiting else
                                      (self.count, self._mean_D, self._products_DD.copy()))
        if count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {count}")
        products_DD /= count - 1
        return Gaussian(mean_D, products_DD, count)

    def state(self) -> dict[str, np.ndarray]:
        """All it holds, for `restore`."""
        waiting_BD = np.concatenate(self._waiting) if self._waiting else np.zeros((0, self.width))
        return {"count": np.array(self.count), "mean": self._mean_D, "products": self._products_DD,
                "waiting": waiting_BD}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from what `state` gave, with the same result as if there had been no break."""
        self.count = int(state["count"])
        self._mean_D, self._products_DD = state["mean"].copy(), state["products"].copy()
        self._waiting, self._num_waiting = [state["waiting"]], len(state["waiting"])

    @classmethod
    def restored(cls, state: Mapping[str, np.ndarray]) -> "Moments":
        """New ones from what `state` gave."""
        found = cls(len(state["mean"]))
        found.restore(state)
        return found

    def _joined(self, rows_BD: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
        """Count, mean and products with more rows."""
        # The gap between the means is one more row of the product, which saves a matrix for it. NumPy takes x.T @ x of
        # one array to BLAS's symmetric product, half of the work.
        rows_BD = rows_BD.astype(np.float64)
        num, mean_D = len(rows_BD), rows_BD.mean(0)
        gap_D = mean_D - self._mean_D
        row_1D = np.sqrt(num * self.count / (num + self.count)) * gap_D[None]
        centred_BD = np.concatenate([rows_BD - mean_D, row_1D])
        products_DD = centred_BD.T @ centred_BD
        products_DD += self._products_DD
        return num + self.count, self._mean_D + gap_D * (num / (num + self.count)), products_DD


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Frechet distance |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) of two normal distributions.

    With S = L L^T and S' = M M^T the trace of the root is the sum of the singular values of L^T M. That needs no root
    of a matrix that is not symmetric, and nothing added to a singular one: covariances of fewer images than features
    are singular. Libraries that take roots of eigenvalues of S S' lose half of the digits there.

    Raises:
      ValueError: the distributions have different numbers of features.
    """
    if len(a.mean_D) != len(b.mean_D):
        raise ValueError(f"both sets must have the same features, got {len(a.mean_D)} and {len(b.mean_D)}")
    gap_D = a.mean_D - b.mean_D
    overlap = np.linalg.svd(_product_of_roots(a.covariance_DD, b.covariance_DD), compute_uv=False).sum()
    spread = np.trace(a.covariance_DD) + np.trace(b.covariance_DD) - 2 * overlap
    return float(max(gap_D @ gap_D + spread, 0.0))  # rounding may leave -1e-12 between equal sets


def _product_of_roots(a_DD: np.ndarray, b_DD: np.ndarray) -> np.ndarray:
    """L^T M of two covariances' factors, in the place of M: a matrix of 2,048 features has 32 MiB."""
    left_DR, right_DS = _root(a_DD), _root(b_DD)
    if left_DR.shape[1] < len(right_DS):
        product_RS: np.ndarray = left_DR.T @ right_DS
        return product_RS
    for first in range(0, right_DS.shape[1], _BLOCK_COLUMNS):
        columns = slice(first, first + _BLOCK_COLUMNS)
        right_DS[:, columns] = left_DR.T @ right_DS[:, columns]
    return right_DS


def _root(covariance_DD: np.ndarray) -> np.ndarray:
    """A factor [D, R] with factor @ factor.T the covariance; of a singular one, without what is only rounding."""
    rounding = len(covariance_DD) * np.finfo(np.float64).eps
    # PyTorch factorises in the place of the result, NumPy in a copy beside it.
    factor_DD, failed = torch.linalg.cholesky_ex(torch.from_numpy(covariance_DD))
    pivots_D = factor_DD.diagonal().square()
    if not failed and pivots_D.min() > rounding * pivots_D.max():
        return factor_DD.numpy()
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    kept = values_D > values_D[-1] * rounding
    factor_DR: np.ndarray = vectors_DD[:, kept] * np.sqrt(values_D[kept])
    return factor_DR


def check_features(features_BD: np.ndarray, width: int) -> np.ndarray:
    """The features; ValueError unless they are finite rows of this width."""
    if features_BD.ndim != 2 or features_BD.shape[1] != width:
        raise ValueError(f"features must be [images, {width}], got {features_BD.shape}")
    if not np.isfinite(features_BD).all():
        raise ValueError("features must be finite; some image gives NaN or infinity. Is a weights file damaged, or are "
                         "images not in [0, 1]?")
    return features_BD
