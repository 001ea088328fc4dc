"""How much of a codebook is used: share, entropy and perplexity, from indices or counts of them.

A codebook of K codes. Where positions have several channels or levels with codebooks of their own, each is
measured on its own.

    B batch, K codes; ... any dimensions of positions
"""
import math

import numpy as np


def count_codes(indices: np.ndarray, num_codes: int) -> np.ndarray:
    """How often each code occurs.

    Args:
      indices: integers of any shape, from 0 to num_codes - 1.
      num_codes: size of the codebook.

    Returns:
      int64 counts_K.

    Raises:
      ValueError: an index lies outside of the codebook.
    """
    if indices.size and not 0 <= indices.min() <= indices.max() < num_codes:
        raise ValueError(f"indices must be from 0 to {num_codes - 1}, got {indices.min()} to {indices.max()}")
    return np.bincount(indices.ravel(), minlength=num_codes).astype(np.int64)


def usage(counts_K: np.ndarray) -> float:
    """The share of codes that occur, from 0 to 1."""
    return np.count_nonzero(counts_K) / len(counts_K)


def entropy_bits(counts_K: np.ndarray) -> float:
    """Entropy of the codes' distribution (the unigram distribution of tokens), in bits a token."""
    total = counts_K.sum()
    if not total:
        raise ValueError("there is no code to take the entropy of: all counts are zero")
    shares = counts_K[counts_K > 0] / total
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


def perplexity(counts_K: np.ndarray) -> float:
    """2 to the entropy: how many codes, used evenly, would be as unpredictable. From 1 to K."""
    return 2.0 ** entropy_bits(counts_K)


class CodebookStatistics:
    """Use of a codebook over a set of images that come in batches of any size, the last of which may be padded.

    Besides the use over the whole set, it measures the one of ViT-VQGAN's Table 4, "the percentage of used codes
    given a batch of 256 test images averaged over the entire test set": images are regrouped in the order they
    come, and a last incomplete group is left out, since fewer images use fewer codes (unless it is the only one).
    """

    def __init__(self, num_codes: int, images_per_group: int = 256):
        for name, value in (("num_codes", num_codes), ("images_per_group", images_per_group)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.counts_K = np.zeros(num_codes, np.int64)
        self._images_per_group = images_per_group
        self._group_counts_K = np.zeros(num_codes, np.int64)
        self._group_size = 0
        self._group_usages: list[float] = []

    def add(self, indices_B: np.ndarray, valid_B: np.ndarray) -> None:
        """Adds a batch.

        Args:
          indices_B: integer indices [B, ...] of each image.
          valid_B: bool, False for padding.
        """
        indices_B = np.asarray(indices_B)[valid_B]
        while len(indices_B):
            part_B, indices_B = np.split(indices_B, [self._images_per_group - self._group_size])
            counts_K = count_codes(part_B, len(self.counts_K))
            self.counts_K += counts_K
            self._group_counts_K += counts_K
            self._group_size += len(part_B)
            if self._group_size == self._images_per_group:
                self._group_usages.append(usage(self._group_counts_K))
                self._group_counts_K[:] = 0
                self._group_size = 0

    def result(self) -> dict[str, float]:
        """`usage` over the set and `usage_per_batch` (shares), `entropy_bits` (a token) and `perplexity`."""
        groups = self._group_usages or [usage(self._group_counts_K)]
        return {
            "usage": usage(self.counts_K),
            "usage_per_batch": math.fsum(groups) / len(groups),
            "entropy_bits": entropy_bits(self.counts_K),
            "perplexity": perplexity(self.counts_K),
        }
