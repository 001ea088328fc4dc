"""KID, the kernel distance between two sets of features (Binkowski et al., 2018).

    N M rows of two sets, S rows of a subset, D features
"""
import numpy as np

NUM_SUBSETS, SUBSET_SIZE = 100, 1000
_SEED = 2020


def kernel_distance(
    a_ND: np.ndarray, b_MD: np.ndarray, num_subsets: int = NUM_SUBSETS, subset_size: int = SUBSET_SIZE,
) -> tuple[float, float]:
    """The unbiased squared maximum mean discrepancy with the kernel (x . y / D + 1)^3, and its standard deviation.

    It is the mean over random subsets (section 4 and appendix), drawn as torch-fidelity draws them: the numbers are
    the same. It is unbiased whatever the subsets' size, hence sets of fewer than 1,000 images are taken whole. A value
    just below 0 is right for sets that are alike.

    Args:
      a_ND: features of one set; the drawn subsets depend on their order.
      b_MD: features of the other.
      num_subsets: the number of subsets.
      subset_size: the number of images in a subset, or all images of the smaller set if that has fewer.

    Raises:
      ValueError: a set has fewer than two images, or widths differ.
    """
    if a_ND.shape[1] != b_MD.shape[1]:
        raise ValueError(f"both sets must have the same features, got {a_ND.shape[1]} and {b_MD.shape[1]}")
    size = min(subset_size, len(a_ND), len(b_MD))
    if size < 2:
        raise ValueError(f"KID needs at least 2 images in each set, got {len(a_ND)} and {len(b_MD)}")
    generator = np.random.RandomState(_SEED)
    values = [_discrepancy(a_ND[generator.choice(len(a_ND), size, replace=False)].astype(np.float64),
                           b_MD[generator.choice(len(b_MD), size, replace=False)].astype(np.float64))
              for _ in range(num_subsets)]
    return float(np.mean(values)), float(np.std(values))


def _discrepancy(a_SD: np.ndarray, b_SD: np.ndarray) -> float:
    """Equation (4): means over pairs of different images within each set, less twice the mean over pairs of the two."""
    size, width = a_SD.shape
    within = sum(_off_diagonal((x_SD @ x_SD.T / width + 1) ** 3) for x_SD in (a_SD, b_SD)) / (size * (size - 1))
    across_SS = (a_SD @ b_SD.T / width + 1) ** 3
    return float(within - 2 * across_SS.mean())


def _off_diagonal(kernel_SS: np.ndarray) -> float:
    return float(kernel_SS.sum() - np.trace(kernel_SS))
