"""Rejection sampling: a classifier selects the samples that look most like their class. ViT-VQGAN Table 6.

    N samples, B batch, M classifiers, Y classes, H W image size
"""
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vqim.classifier.model import Classifier
from vqim.contracts.context import Context
from vqim.contracts.evaluation import About, Items, Tally
from vqim.contracts.frozen import Frozen
from vqim.state.leaf import State
from vqim.tokenizer.model import float_to_images

NUM_SHOWN = 8
"""The number of classes for which the evaluator shows an image."""


def accept(scores_N: np.ndarray, labels_N: np.ndarray, rate: float) -> np.ndarray:
    """Which candidates are accepted: for each label, those with the best scores.

    Args:
      scores_N: a classifier's probability of the wanted class, or anything that grows with it.
      labels_N: the wanted classes, integers.
      rate: the share that is accepted: n * rate of a label's n candidates, rounded down, but at least one. Of equal
        scores, the first are accepted.

    Returns:
      bool [N].
    """
    best_first = np.lexsort((-scores_N, labels_N))
    _, begins, inverse, sizes = np.unique(
        labels_N[best_first], return_index=True, return_inverse=True, return_counts=True)
    counts = np.maximum(1, np.floor(np.round(sizes * rate, 6)))
    ranks = np.arange(len(labels_N)) - begins[inverse]
    accepted_N = np.empty(len(labels_N), bool)
    accepted_N[best_first] = ranks < counts[inverse]
    return accepted_N


def num_needed(num_wanted: int, rate: float) -> int:
    """The number of candidates in a class that are needed to accept the wanted number."""
    return math.ceil(round(num_wanted / rate, 6))


def groups(labels_N: np.ndarray, size: int, split_classes: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Parts of at least `size` labels, except the last, each with the number of its first one.

    Without `split_classes`, labels are sorted, and a class is in one part.
    """
    start = 0
    while start < len(labels_N):
        end = min(start + size, len(labels_N))
        if not split_classes:
            end = int(np.searchsorted(labels_N, labels_N[end - 1], side="right"))
        yield start, labels_N[start:end]
        start = end


def check_rate(name: str, rate: float) -> None:
    """Raises ValueError unless `rate` can be an acceptance rate."""
    if not 0 < rate <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1 (every sample is accepted), got {rate}")


def check_classifier(classifier: Classifier, num_classes: int, image_size: int) -> None:
    """Raises ValueError unless a classifier fits a prior's classes and images."""
    _check_same("classifier", "num_classes", num_classes, classifier.num_classes)
    _check_same("classifier", "image_size", image_size, classifier.image_size)


def _check_same(name: str, number: str, wanted: int, got: int) -> None:
    if got != wanted:
        raise ValueError(f"{name} must have the prior's {number}, {wanted}, got {got}")


def verdicts_of(logits_MBY: list[np.ndarray], labels_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each classifier's log-probabilities of the wanted classes, and whether these are the likeliest, [M, B]."""
    shape, here_B = (len(logits_MBY), len(labels_B)), np.arange(len(labels_B))
    scores_MB, hits_MB = np.empty(shape, np.float32), np.empty(shape, bool)
    for m, logits_BY in enumerate(logits_MBY):
        shifted_BY = logits_BY - logits_BY.max(1, keepdims=True)
        scores_MB[m] = shifted_BY[here_B, labels_B] - np.log(np.exp(shifted_BY).sum(1))
        hits_MB[m] = shifted_BY.argmax(1) == labels_B
    return scores_MB, hits_MB


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """How `launch.sample` and `evaluation.Samples` select among samples; its name in gin files is `sample`.

    Attributes:
      classifier: the classifier whose probability of the wanted class is the score.
      acceptance_rate: the share of a class's samples that is accepted; 1.0 accepts all and needs no classifier.
    """

    classifier: Classifier | None = None
    acceptance_rate: float = 1.0

    def __post_init__(self) -> None:
        check_rate("acceptance_rate", self.acceptance_rate)
        if self.acceptance_rate < 1 and self.classifier is None:
            raise ValueError(f"acceptance_rate {self.acceptance_rate} needs a classifier, such as "
                             "sample.classifier = @classifier.TrainedClassifier()")

    def describe(self) -> str:
        """The rate, and whose classifier it is, for the protocol of a result."""
        run = getattr(self.classifier, "run", None)
        by = f"{type(self.classifier).__name__}{f' of {run}' if run else ''}"
        return f"{self.acceptance_rate:g} of the candidates of each class, those of which {by} is surest"


class Rejection:
    """Judges the samples that a classifier accepts, at several acceptance rates: a metric for `evaluation.Samples`.

    A classifier that accepts images always finds the accepted images more accurate, even where it is wrong. An
    independent judge shows how much of this is true.

    For every rate and classifier it shows the share of accepted images whose wanted class is the likeliest (`top1`),
    the mean probability of that class, and an accepted image from each of eight classes.

    Args:
      classifier: the classifier that selects.
      rates: the acceptance rates; by default those of Table 6.
      judge: another classifier, trained independently; None for no judge.
    """

    needs = ("images_BCHW", "labels_B")

    def __init__(
        self, classifier: Classifier, rates: Sequence[float] = (1.0, 0.5, 0.25), judge: Classifier | None = None,
    ):
        for rate in rates:
            check_rate("rates", rate)
        self.rates = tuple(rates)
        self._classifiers: dict[str, Classifier] = {"classifier": classifier} | ({"judge": judge} if judge else {})
        self.frozen: Mapping[str, Frozen] = dict(self._classifiers)

    def observe(self, items: Items, frozen: Mapping[str, State], context: Context) -> dict[str, Tensor]:
        """See `Metric`."""
        assert items.images_BCHW is not None and items.labels_B is not None
        for name, classifier in self._classifiers.items():
            _check_same(name, "image_size", items.images_BCHW.shape[-1], classifier.image_size)
        logits = {f"logits/{name}": classifier(frozen[name], items.images_BCHW, context=context)
                  for name, classifier in self._classifiers.items()}
        return {"labels": items.labels_B, "images": float_to_images(items.images_BCHW), **logits}

    def tally(self, about: About) -> Tally:
        """See `Metric`."""
        for name, classifier in self._classifiers.items():
            _check_same(name, "num_classes", about.num_classes, classifier.num_classes)
        return _Judged(list(self._classifiers), self.rates)


class _Judged:
    """Scores of all samples, and images of a few classes."""

    def __init__(self, names: list[str], rates: Sequence[float]):
        self._names, self._rates = names, rates
        self._labels: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []
        self._hits: list[np.ndarray] = []
        self._images: dict[int, np.ndarray] = {}  # by the sample's number; for most classes none is shown

    def add(self, observed: Mapping[str, np.ndarray], valid_B: np.ndarray) -> None:
        """See `Tally`."""
        labels_B, first = observed["labels"][valid_B], sum(map(len, self._labels))
        scores_MB, hits_MB = verdicts_of([observed[f"logits/{name}"][valid_B] for name in self._names], labels_B)
        shown = np.flatnonzero(labels_B < NUM_SHOWN).tolist()
        self._images |= {first + i: observed["images"][valid_B][i] for i in shown}
        for kept, found in ((self._labels, labels_B), (self._scores, scores_MB), (self._hits, hits_MB)):
            kept.append(found)

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        if not self._labels:
            return {}
        shown = {"numbers": np.array(list(self._images)), "images": np.stack(list(self._images.values()))
                 } if self._images else {}
        return {"labels": np.concatenate(self._labels), "scores": np.concatenate(self._scores, 1),
                "hits": np.concatenate(self._hits, 1), **shown}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Resumable`."""
        if state:
            self._labels, self._scores, self._hits = [state["labels"]], [state["scores"]], [state["hits"]]
        if "numbers" in state:
            self._images = dict(zip(state["numbers"].tolist(), state["images"], strict=True))

    def result(self) -> dict[str, Any]:
        """See `Rejection`."""
        labels_N = np.concatenate(self._labels)
        scores_MN, hits_MN = np.concatenate(self._scores, 1), np.concatenate(self._hits, 1)
        results: dict[str, Any] = {}
        for rate in self._rates:
            accepted_N = accept(scores_MN[0], labels_N, rate)
            for m, name in enumerate(self._names):
                results[f"rejection/{name}_top1_at_{rate:g}"] = float(hits_MN[m, accepted_N].mean())
                results[f"rejection/{name}_probability_at_{rate:g}"] = float(np.exp(scores_MN[m, accepted_N]).mean())
            # For every class the first accepted image, not the best one.
            classes, first = np.unique(labels_N[accepted_N], return_index=True)
            chosen = np.flatnonzero(accepted_N)[first[classes < NUM_SHOWN]]
            if len(chosen):
                results[f"images/accepted_at_{rate:g}"] = np.stack([self._images[number] for number in chosen.tolist()])
        return results
