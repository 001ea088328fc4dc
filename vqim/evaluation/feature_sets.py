"""Sets of images by their features: what is added up over them, and what is measured between two of them.

    B batch, N images kept, C S D features, Y classes
"""
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from vqim.evaluation.frechet import Gaussian, Moments, check_features, frechet_distance
from vqim.evaluation.inception_score import InceptionScore
from vqim.evaluation.kid import kernel_distance
from vqim.evaluation.neighbours import compare_neighbours
from vqim.evaluation.tally_state import join, part_of

T = TypeVar("T")

NUM_KEPT = 10_000
"""Images whose features are kept for KID and neighbours, as in ADM's references: 82 MB of 2,048 features."""

KEEPING = ("kid", "precision", "recall", "density", "coverage")
"""The measures that need the features themselves."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What of a set of images is compared with another set.

    Attributes:
      pooled: mean and covariance of the features; None if these were not measured.
      spatial: those of the features that keep their place; None if these were not measured.
      features_NC: float32 features of some images, in their order; None if none were kept.
    """

    pooled: Gaussian | None = None
    spatial: Gaussian | None = None
    features_NC: np.ndarray | None = None

    def needed_for(self, measure: str) -> Gaussian | np.ndarray | None:
        """What a distance is computed from; None if it was not measured."""
        return {"fid": self.pooled, "sfid": self.spatial}.get(measure, self.features_NC)


class FeatureSet:
    """Adds up the features of a set of images, whose number is known before.

    Args:
      num_images: the number of images that will come.
      measures: what shall be measured, of `vqim.evaluation.extractors.MEASURES`; the rest is not added up.
      num_kept: the largest number of images whose features are kept; they are evenly spaced over the set.
    """

    def __init__(self, num_images: int, measures: Sequence[str], num_kept: int = NUM_KEPT):
        self.num_images, self._measures, self.count = num_images, tuple(measures), 0
        self._pooled: Moments | None = None
        self._spatial: Moments | None = None
        self._scores: tuple[InceptionScore, InceptionScore] | None = None
        kept = min(num_kept, num_images) if set(KEEPING) & set(measures) else 0
        self._is_kept = np.zeros(num_images, bool)
        self._is_kept[np.arange(kept) * num_images // max(kept, 1)] = True
        self._kept: list[np.ndarray] = []

    def add(
        self, pooled_BC: np.ndarray, spatial_BS: np.ndarray | None = None, logits_BY: np.ndarray | None = None,
    ) -> None:
        """Adds the next images; ValueError for more than were to come, or values that are not finite."""
        if self.count + len(pooled_BC) > self.num_images:
            raise ValueError(f"expected {self.num_images} images, got {self.count + len(pooled_BC)} or more")
        check_features(pooled_BC, pooled_BC.shape[1])
        self._kept.append(pooled_BC[self._is_kept[self.count:self.count + len(pooled_BC)]])
        self.count += len(pooled_BC)
        if "fid" in self._measures:
            self._pooled = self._pooled or Moments(pooled_BC.shape[1])
            self._pooled.add(pooled_BC)
        if spatial_BS is not None and "sfid" in self._measures:
            self._spatial = self._spatial or Moments(spatial_BS.shape[1])
            self._spatial.add(spatial_BS)
        if logits_BY is not None and "inception_score" in self._measures:
            if self._scores is None:
                self._start_scores(logits_BY.shape[1])
            assert self._scores is not None
            for score in self._scores:
                score.add(logits_BY)

    def state(self) -> dict[str, np.ndarray]:
        """All that it holds besides its settings, for `restore`."""
        parts = {"pooled": self._pooled, "spatial": self._spatial} | dict(zip(
            ("score", "score_shuffled"), self._scores or (None, None), strict=True))
        return {"count": np.array(self.count), **({"kept": np.concatenate(self._kept)} if self._kept else {}),
                **join({name: part.state() for name, part in parts.items() if part is not None})}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from what `state` gave, with the same result as if there had been no break."""
        self.count, self._kept = int(state["count"]), [state["kept"]] if "kept" in state else []
        self._pooled, self._spatial = (
            Moments.restored(part) if (part := part_of(state, name)) else None for name in ("pooled", "spatial"))
        if score := part_of(state, "score"):
            self._start_scores(score["probabilities"].shape[1])
            assert self._scores is not None
            for own, name in zip(self._scores, ("score", "score_shuffled"), strict=True):
                own.restore(part_of(state, name))

    def _start_scores(self, num_classes: int) -> None:
        self._scores = (InceptionScore(self.num_images, num_classes, shuffled=False),
                        InceptionScore(self.num_images, num_classes, shuffled=True))

    def statistics(self) -> Statistics:
        """What is compared with another set; ValueError if there were fewer than two images.

        Fewer images than expected may have come, where some could not be decoded.
        """
        kept_NC = np.concatenate(self._kept) if self._kept else None
        pooled = self._pooled.gaussian() if self._pooled else None
        return Statistics(pooled, self._spatial.gaussian() if self._spatial else None,
                          kept_NC if kept_NC is not None and len(kept_NC) else None)

    def inception_score(self) -> dict[str, float]:
        """The Inception score in order and shuffled, each with its standard deviation.

        {} where it is not measured, or an image is missing.
        """
        if self._scores is None or self.count < self.num_images:  # its splits are of a number known before
            return {}
        (mean, std), (shuffled, shuffled_std) = (score.result() for score in self._scores)
        return {"inception_score": mean, "inception_score_std": std,
                "inception_score_shuffled": shuffled, "inception_score_shuffled_std": shuffled_std}


def compare(images: Statistics, reference: Statistics, measures: Sequence[str]) -> dict[str, float]:
    """Distances of a set of images from a reference, by the names of `vqim.evaluation.extractors.MEASURES`.

    Args:
      images: generated images or reconstructions.
      reference: real images.
      measures: which distances; 'inception_score' is none and is left out.

    Raises:
      ValueError: a set lacks what a measure needs, or has too few images for it.
    """
    found: dict[str, float] = {}
    if "fid" in measures:
        found["fid"] = frechet_distance(*_both(images.pooled, reference.pooled, "fid"))
    if "sfid" in measures:
        found["sfid"] = frechet_distance(*_both(images.spatial, reference.spatial, "sfid"))
    if "kid" in measures:
        found["kid"], found["kid_std"] = kernel_distance(*_both(images.features_NC, reference.features_NC, "kid"))
    wanted = [measure for measure in KEEPING[1:] if measure in measures]
    if wanted:
        generated_NC, real_NC = _both(images.features_NC, reference.features_NC, wanted[0])
        neighbours = compare_neighbours(real_NC, generated_NC)
        found |= {measure: getattr(neighbours, measure) for measure in wanted}
    return found


def _both(one: T | None, other: T | None, measure: str) -> tuple[T, T]:
    for value, whose in ((one, "images"), (other, "reference")):
        if value is None:
            needed = {"fid": "mu and sigma", "sfid": "mu_s and sigma_s"}.get(measure, "features of single images")
            raise ValueError(f"{measure} needs {needed}, which the {whose} lack; measure less, or let "
                             "launch.compare --write_statistics make a file that has them")
    assert one is not None and other is not None
    return one, other
