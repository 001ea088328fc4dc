"""The Inception score (Salimans et al., 2016), from logits that come in batches.

    B rows of a batch, N images, Y classes, S splits
"""
from collections.abc import Mapping

import numpy as np

NUM_SPLITS = 10
_SEED = 2020


class InceptionScore:
    """exp of the mean divergence between each image's classes and those of its split, as a mean over splits.

    Only sums are kept: of every split, how often each class is expected, and the images' negative entropies.

    Args:
      num_images: the number of images that will come; at least one for each split.
      num_classes: the number Y of logits.
      shuffled: False splits images in their order, as ADM's evaluator and the original code do: samples that are
        sorted by class score less. True splits them at random, by torch-fidelity's permutation.
      num_splits: the number of splits.
    """

    def __init__(self, num_images: int, num_classes: int, shuffled: bool = False, num_splits: int = NUM_SPLITS):
        if num_images < num_splits:
            raise ValueError(f"the Inception score over {num_splits} splits needs at least {num_splits} images, got "
                             f"{num_images}")
        ends_S = np.arange(1, num_splits + 1) * num_images // num_splits
        splits_N = np.searchsorted(ends_S, np.arange(num_images), side="right")
        if shuffled:  # the image that the permutation puts first belongs to the first split
            order_N = np.random.RandomState(_SEED).permutation(num_images)
            splits_N[order_N] = splits_N.copy()
        self._splits_N = splits_N
        self._counts_S = np.bincount(splits_N, minlength=num_splits)
        self._seen = 0
        self._probabilities_SY = np.zeros((num_splits, num_classes))
        self._information_S = np.zeros(num_splits)

    def add(self, logits_BY: np.ndarray) -> None:
        """Adds the next images' logits; ValueError if they are too many or not finite."""
        logits_BY = logits_BY.astype(np.float64)
        if not np.isfinite(logits_BY).all():
            raise ValueError("logits must be finite; some image gives NaN or infinity")
        splits_B = self._splits_N[self._seen:self._seen + len(logits_BY)]
        self._seen += len(logits_BY)
        if len(splits_B) < len(logits_BY):
            raise ValueError(f"expected {len(self._splits_N)} images, got {self._seen} or more")
        shifted_BY = logits_BY - logits_BY.max(1, keepdims=True)
        log_probabilities_BY = shifted_BY - np.log(np.exp(shifted_BY).sum(1, keepdims=True))
        probabilities_BY = np.exp(log_probabilities_BY)
        for split in np.unique(splits_B):
            own_B = splits_B == split
            self._probabilities_SY[split] += probabilities_BY[own_B].sum(0)
            self._information_S[split] += (probabilities_BY[own_B] * log_probabilities_BY[own_B]).sum()

    def state(self) -> dict[str, np.ndarray]:
        """All that it holds besides its settings, for `restore`."""
        return {"seen": np.array(self._seen), "probabilities": self._probabilities_SY,
                "information": self._information_S}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from what `state` gave, with the same result as if there had been no break."""
        self._seen = int(state["seen"])
        self._probabilities_SY, self._information_S = state["probabilities"].copy(), state["information"].copy()

    def result(self) -> tuple[float, float]:
        """The mean over splits, and their standard deviation; ValueError unless all images have come."""
        if self._seen != len(self._splits_N):
            raise ValueError(f"expected {len(self._splits_N)} images, got {self._seen}")
        mean_SY = self._probabilities_SY / self._counts_S[:, None]
        entropy_S = -np.sum(mean_SY * np.log(np.where(mean_SY > 0, mean_SY, 1.0)), axis=1)
        scores_S = np.exp(self._information_S / self._counts_S + entropy_S)
        return float(scores_S.mean()), float(scores_S.std())
