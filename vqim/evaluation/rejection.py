"""Rejection sampling: a classifier selects the samples that look most like their class. ViT-VQGAN Table 6.

    N samples, B batch, M classifiers, Y classes, H W image size
"""
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqim.classifier.model import Classifier
from vqim.contracts.context import Context
from vqim.contracts.evaluation import About, Items, Tally
from vqim.contracts.frozen import Frozen
from vqim.contracts.prior import Draw
from vqim.contracts.runtime import Runtime
from vqim.contracts.task import Task
from vqim.evaluation.passes import draw_batches, place_frozen
from vqim.state import sections
from vqim.state.leaf import State, select
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


def check_rate(name: str, rate: float) -> None:
    """Raises ValueError unless `rate` can be an acceptance rate."""
    if not 0 < rate <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1 (every sample is accepted), got {rate}")


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Samples from a prior, and the results of M classifiers on them.

    Attributes:
      labels_B: the wanted classes.
      images_BHWC: uint8 images.
      scores_MB: log-probabilities of the wanted classes.
      hits_MB: whether the wanted class is the likeliest.
    """

    labels_B: np.ndarray
    images_BHWC: np.ndarray
    scores_MB: np.ndarray
    hits_MB: np.ndarray


class CandidateSampler:
    """Draws images from a prior and classifies them, as 8-bit images, in float32.

    Args:
      task: a task with a prior.
      runtime: where to run.
      draw: the function that draws its tokens.
      batch_size: the batch size of `draw`.
      classifier: the classifier; None for none.

    Raises:
      ValueError: the classifier is for other classes or images than the prior's.
    """

    def __init__(self, task: Task, runtime: Runtime, draw: Draw, batch_size: int, classifier: Classifier | None = None):
        objective: Any = task.objective
        if classifier is not None:
            check_classifier(classifier, objective.num_classes, objective.tokenizer.image_size)
        self._task, self._runtime, self._draw, self._batch_size = task, runtime, draw, batch_size
        self._classifiers: dict[str, Any] = {"classifier": classifier} if classifier is not None else {}
        self._frozen = place_frozen(self._classifiers, runtime)
        self._look = runtime.compile(self._look_at)

    def __call__(self, state: State, labels_N: np.ndarray, seed: int) -> Iterator[Candidates]:
        """Draws one image for each label, batch by batch.

        Args:
          state: a state with the prior's arrays and its frozen tokenizer's arrays.
          labels_N: int32 classes; -1 where none is told, which is possible only without a classifier.
          seed: seed for the draws; image number i is the same for any batch size, on the same kind of runtime.
        """
        batches = draw_batches(
            self._draw, self._task, state, self._runtime, labels_N, self._batch_size, seed)
        for first, batch in zip(range(0, len(labels_N), self._batch_size), batches, strict=True):
            labels_B = labels_N[first:first + self._batch_size]
            images_BHWC, *logits_MBY = self._runtime.fetch(self._look(state, self._frozen, batch["tokens"]))
            verdicts = verdicts_of([logits_BY[:len(labels_B)] for logits_BY in logits_MBY], labels_B)
            yield Candidates(labels_B, images_BHWC[:len(labels_B)], *verdicts)

    def _look_at(self, state: State, frozen: State, tokens_BNK: Tensor) -> list[Tensor]:
        """The images of tokens, uint8 [B, H, W, C], and the classifier's logits [B, Y]."""
        with torch.no_grad():
            context, objective = Context(self._runtime.kernels), self._task.objective
            images_BCHW = objective.images(state, tokens_BNK, context)  # type: ignore[attr-defined]
            logits = [classifier(select(frozen, sections.frozen(name)), images_BCHW, context=context)
                      for name, classifier in self._classifiers.items()]
            return [float_to_images(images_BCHW), *logits]


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


def accepted(batches: Iterable[Candidates], rate: float) -> Iterator[Candidates]:
    """The candidates that the first classifier accepts; holds at most one class and one batch in memory.

    Args:
      batches: all candidates, sorted by label.
      rate: the acceptance rate.
    """
    held: Candidates | None = None
    for batch in batches:
        held = _join(held, batch) if held else batch
        is_last_B = held.labels_B == held.labels_B[-1]  # more of this class may come
        if not is_last_B.all():
            yield _accepted_of(_part(held, ~is_last_B), rate)
            held = _part(held, is_last_B)
    if held:
        yield _accepted_of(held, rate)


def _accepted_of(candidates: Candidates, rate: float) -> Candidates:
    return _part(candidates, accept(candidates.scores_MB[0], candidates.labels_B, rate))


def _part(candidates: Candidates, mask_B: np.ndarray) -> Candidates:
    return Candidates(candidates.labels_B[mask_B], candidates.images_BHWC[mask_B],
                      candidates.scores_MB[:, mask_B], candidates.hits_MB[:, mask_B])


def _join(a: Candidates, b: Candidates) -> Candidates:
    return Candidates(np.concatenate([a.labels_B, b.labels_B]), np.concatenate([a.images_BHWC, b.images_BHWC]),
                      np.concatenate([a.scores_MB, b.scores_MB], 1), np.concatenate([a.hits_MB, b.hits_MB], 1))


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """How `launch.sample` selects among its samples; its name in gin files is `sample`.

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
        self._seen: list[Candidates] = []

    def add(self, observed: Mapping[str, np.ndarray], valid_B: np.ndarray) -> None:
        """See `Tally`."""
        labels_B = observed["labels"][valid_B]
        verdicts = verdicts_of([observed[f"logits/{name}"][valid_B] for name in self._names], labels_B)
        images_BHWC = observed["images"][valid_B]
        # For most classes no image is shown, so none is kept.
        images_BHWC = images_BHWC if (labels_B < NUM_SHOWN).any() else images_BHWC[:, :0, :0]
        self._seen.append(Candidates(labels_B, images_BHWC, *verdicts))

    def result(self) -> dict[str, Any]:
        """See `Rejection`."""
        labels_N = np.concatenate([part.labels_B for part in self._seen])
        scores_MN = np.concatenate([part.scores_MB for part in self._seen], 1)
        hits_MN = np.concatenate([part.hits_MB for part in self._seen], 1)
        images_N = [image for part in self._seen for image in part.images_BHWC]
        results: dict[str, Any] = {}
        for rate in self._rates:
            accepted_N = accept(scores_MN[0], labels_N, rate)
            for m, name in enumerate(self._names):
                results[f"rejection/{name}_top1_at_{rate:g}"] = float(hits_MN[m, accepted_N].mean())
                results[f"rejection/{name}_probability_at_{rate:g}"] = float(np.exp(scores_MN[m, accepted_N]).mean())
            # For every class the first accepted image, not the best one.
            classes, first = np.unique(labels_N[accepted_N], return_index=True)
            chosen = np.flatnonzero(accepted_N)[first[classes < NUM_SHOWN]]
            results[f"images/accepted_at_{rate:g}"] = np.stack([images_N[number] for number in chosen])
        return results
