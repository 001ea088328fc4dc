"""How much of a codebook is used: share, entropy and perplexity, from indices or counts of them.

A codebook has K codes. If channels or levels have their own codebooks, each is measured separately.

    B batch, K codes, N images in a set, G groups of images; ... any dimensions of positions
"""
from collections.abc import Mapping

import numpy as np

_SHUFFLE_KEY = 256

GROUP = 256
"""The images of a batch in ViT-VQGAN's Table 4."""


def count_codes(indices: np.ndarray, num_codes: int) -> np.ndarray:
    """How often each code occurs.

    Args:
      indices: integers of any shape, from 0 to num_codes - 1.
      num_codes: the size of the codebook.

    Returns:
      int64 counts_K.

    Raises:
      ValueError: an index is outside the codebook.
    """
    if indices.size and not 0 <= indices.min() <= indices.max() < num_codes:
        raise ValueError(f"indices must be from 0 to {num_codes - 1}, got {indices.min()} to {indices.max()}")
    return np.bincount(indices.ravel(), minlength=num_codes).astype(np.int64)


def usage(counts_K: np.ndarray) -> float:
    """The share of codes that occur, from 0 to 1."""
    return np.count_nonzero(counts_K) / len(counts_K)


def entropy_bits(counts_K: np.ndarray) -> float:
    """Entropy of the codes' distribution (the unigram distribution of tokens), in bits per token."""
    total = counts_K.sum()
    if not total:
        raise ValueError("there is no code to take the entropy of: all counts are zero")
    shares = counts_K[counts_K > 0] / total
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


def perplexity(counts_K: np.ndarray) -> float:
    """2 to the power of the entropy: the number of evenly used codes that would be as unpredictable. From 1 to K."""
    return 2.0 ** entropy_bits(counts_K)


class CodebookStatistics:
    """Use of a codebook over a set of images, which come in order, in batches of any size, possibly with padding.

    Besides the use over the whole set, it measures the use in ViT-VQGAN's Table 4, "the percentage of used codes given
    a batch of 256 test images averaged over the entire test set". A fixed shuffle of the images' numbers decides which
    images form a group, because images of one class, which often follow one another, use fewer codes. An incomplete
    group is left out unless it is the only one, since fewer images use fewer codes. An image that is not valid is
    missing from its group.
    """

    def __init__(self, num_codes: int, num_images: int, images_per_group: int = GROUP):
        for name, value in (("num_codes", num_codes), ("num_images", num_images),
                            ("images_per_group", images_per_group)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.counts_K = np.zeros(num_codes, np.int64)
        # Of NumPy's random numbers, only the generators' raw bits are the same in all versions.
        ranks_N = np.random.Philox(key=_SHUFFLE_KEY).random_raw(num_images).argsort(kind="stable")
        self._groups_N = ranks_N // images_per_group
        self._used_GK = np.zeros((max(1, num_images // images_per_group), num_codes), bool)
        self._num_seen = 0

    def add(self, indices_B: np.ndarray, valid_B: np.ndarray) -> None:
        """Adds the next places in the set.

        Args:
          indices_B: integer indices [B, ...] of each image.
          valid_B: bool, False where there is no image: it could not be read, or it is padding after the last.

        Raises:
          ValueError: an index is outside the codebook, or there are more images than `num_images`.
        """
        numbers_B = self._num_seen + np.flatnonzero(valid_B)
        self._num_seen += len(valid_B)
        if len(numbers_B) and numbers_B[-1] >= len(self._groups_N):
            raise ValueError(f"expected {len(self._groups_N)} images, got one more at place {numbers_B[-1]}")
        indices_B = np.asarray(indices_B)[valid_B]
        self.counts_K += count_codes(indices_B, len(self.counts_K))
        for group, indices in zip(self._groups_N[numbers_B], indices_B, strict=True):
            if group < len(self._used_GK):
                self._used_GK[group, indices] = True

    def state(self) -> dict[str, np.ndarray]:
        """All that it holds, for `restore`."""
        return {"counts": self.counts_K, "used": self._used_GK, "seen": np.array(self._num_seen)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from what `state` gave, with the same result as if there had been no break."""
        self.counts_K, self._used_GK = state["counts"].copy(), state["used"].copy()
        self._num_seen = int(state["seen"])

    def result(self) -> dict[str, float]:
        """`usage` over the set and `usage_per_batch` (shares), `entropy_bits` (per token) and `perplexity`."""
        return {
            "usage": usage(self.counts_K),
            "usage_per_batch": float(self._used_GK.mean()),
            "entropy_bits": entropy_bits(self.counts_K),
            "perplexity": perplexity(self.counts_K),
        }
