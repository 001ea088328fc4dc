"""Rejection sampling by a classifier: of many samples of a class, those that look most like it. ViT-VQGAN Table 6.

    N samples, B batch, M classifiers, Y classes, H W image size
"""
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqim.classifier.model import Classifier
from vqim.evaluation.reconstruction import to_bytes
from vqim.nn.context import Context
from vqim.prior.sampler import Sampler
from vqim.prior.sampling import check_sampling
from vqim.prior.task import PriorTask
from vqim.state.leaf import State, select
from vqim.tokenizer.model import images_to_float

NUM_SHOWN = 8
"""Classes of which the evaluator shows a picture."""


def accept(scores_N: np.ndarray, labels_N: np.ndarray, rate: float) -> np.ndarray:
    """Which candidates are accepted: of every label, those with the best scores.

    Args:
      scores_N: a classifier's probability of the wanted class, or anything that grows with it.
      labels_N: the wanted classes, integers.
      rate: share that is accepted; n * rate of a label's n candidates, rounded down, and at least one. Of equal scores
        the first are accepted.

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
    """How many candidates of a class it takes for as many as are wanted to be accepted."""
    return math.ceil(round(num_wanted / rate, 6))


def check_rate(name: str, rate: float) -> None:
    """Raises ValueError unless it is an acceptance rate."""
    if not 0 < rate <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1 (every sample is accepted), got {rate}")


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Samples of a prior, and what each of M classifiers says of them.

    Attributes:
      labels_B: the wanted classes.
      images_BHWC: uint8.
      scores_MB: log-probabilities of the wanted classes.
      hits_MB: whether the wanted class is the likeliest.
    """

    labels_B: np.ndarray
    images_BHWC: np.ndarray
    scores_MB: np.ndarray
    hits_MB: np.ndarray


class CandidateSampler:
    """Draws pictures from a prior and has classifiers look at them, as 8-bit pictures, in float32.

    Args:
      task: of the prior.
      sampler: of its tokens.
      classifiers: may be none.

    Raises:
      ValueError: a classifier is for other classes or pictures than the prior's.
    """

    def __init__(self, task: PriorTask, sampler: Sampler, classifiers: Sequence[Classifier] = ()):
        for classifier in classifiers:
            for name, wanted, got in (("num_classes", task.num_classes, classifier.num_classes),
                                      ("image_size", task.tokenizer.image_size, classifier.image_size)):
                if got != wanted:
                    raise ValueError(f"classifier must have the prior's {name}, {wanted}, got {got}")
        self.task, self.sampler, self.runtime, self.classifiers = task, sampler, sampler.runtime, tuple(classifiers)
        self._frozen = [_place(classifier, self.runtime) for classifier in self.classifiers]
        self._look = self.runtime.compile(self._look_at)

    def __call__(self, state: State, labels_N: np.ndarray, seed: int) -> Iterator[Candidates]:
        """Draws one picture for each label, batch by batch.

        Args:
          state: with the prior's `params` and its tokenizer's `frozen` arrays.
          labels_N: int32 classes; -1, only without classifiers, where none is told.
          seed: the same seed draws the same pictures, on one kind of runtime.
        """
        batch_size = self.sampler.batch_size
        for first in range(0, len(labels_N), batch_size):
            labels_B = labels_N[first:first + batch_size]
            count = len(labels_B)
            padded_B = np.pad(labels_B, (0, batch_size - count), constant_values=-1)
            batch_seed = int(np.random.SeedSequence([seed, first]).generate_state(1)[0]) >> 1
            tokens_BNK = self.sampler(select(state, "params/prior/"), padded_B, batch_seed)
            images_BHWC, *logits_MBY = self.runtime.fetch(self._look(state, self._frozen, tokens_BNK))
            yield Candidates(labels_B, images_BHWC[:count], *_verdicts(logits_MBY, labels_B))

    def _look_at(self, state: State, frozen: list[State], tokens_BNK: Tensor) -> list[Tensor]:
        """Pictures of tokens, uint8 [B, H, W, C], and each classifier's logits [B, Y]."""
        with torch.no_grad():
            images_BHWC = to_bytes(self.task.images(state, tokens_BNK, self.runtime.kernels))
            context = Context(self.runtime.kernels)
            return [images_BHWC, *(
                classifier.logits(arrays, images_to_float(images_BHWC), context)
                for classifier, arrays in zip(self.classifiers, frozen, strict=True))]


def _place(classifier: Classifier, runtime: Any) -> State:
    """A classifier's arrays on the devices."""
    return {name: runtime.place(f"frozen/classifier/{name}", leaf, partial(leaf.init, name, leaf.shape, 0))
            for name, leaf in classifier.init_spec().items()}


def _verdicts(logits_MBY: list[np.ndarray], labels_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and hits, [M, B] each."""
    shape, here_B = (len(logits_MBY), len(labels_B)), np.arange(len(labels_B))
    scores_MB, hits_MB = np.empty(shape, np.float32), np.empty(shape, bool)
    for m, logits_BY in enumerate(logits_MBY):
        shifted_BY = logits_BY[:len(labels_B)] - logits_BY[:len(labels_B)].max(1, keepdims=True)
        scores_MB[m] = shifted_BY[here_B, labels_B] - np.log(np.exp(shifted_BY).sum(1))
        hits_MB[m] = shifted_BY.argmax(1) == labels_B
    return scores_MB, hits_MB


def accepted(batches: Iterable[Candidates], rate: float) -> Iterator[Candidates]:
    """The candidates that the first classifier accepts, holding no more of them than those of a class and one batch.

    Args:
      batches: all candidates, sorted by label.
      rate: of acceptance.
    """
    held: Candidates | None = None
    for batch in batches:
        held = _join(held, batch) if held else batch
        is_last_B = held.labels_B == held.labels_B[-1]  # of which more may come
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
class Rejection:
    """What `launch.sample` does with what it draws; in gin files, `sample`.

    Attributes:
      classifier: its probability of the wanted class is the score.
      acceptance_rate: share of the samples of a class that is accepted; 1.0 accepts all, and needs no classifier.
    """

    classifier: Classifier | None = None
    acceptance_rate: float = 1.0

    def __post_init__(self) -> None:
        check_rate("acceptance_rate", self.acceptance_rate)
        if self.acceptance_rate < 1 and self.classifier is None:
            raise ValueError(f"acceptance_rate {self.acceptance_rate} needs a classifier, such as "
                             "sample.classifier = @classifier.TrainedClassifier()")


class RejectionEvaluator:
    """Draws candidates of every class, and judges those that a classifier accepts, at several acceptance rates.

    The classifier that accepts pictures finds what it accepted more accurate by construction, also where it is wrong;
    a judge that had no part in it says how much of that is true.

    Args:
      classifier: selects.
      num_candidates: of each class.
      batch_size: pictures drawn at a time.
      rates: of acceptance; Table 6's unless given.
      judge: another classifier, trained on its own; None does without.
      every: steps between two measurements; 0 for the end alone.
      temperature, top_k, top_p: see `vqim.prior.sampling.sample_logits`.
      seed: of the draws.
    """

    def __init__(
        self, classifier: Classifier, num_candidates: int, batch_size: int,
        rates: Sequence[float] = (1.0, 0.5, 0.25), judge: Classifier | None = None, every: int = 0,
        temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0,
    ):
        for rate in rates:
            check_rate("rates", rate)
            if num_candidates < num_needed(1, rate):
                raise ValueError(f"num_candidates must be at least {num_needed(1, rate)} for one to be accepted at the "
                                 f"rate {rate:g}, got {num_candidates}")
        check_sampling(temperature, top_k, top_p)
        self.classifiers = {"classifier": classifier} | ({"judge": judge} if judge else {})
        self.num_candidates, self.batch_size, self.rates = num_candidates, batch_size, tuple(rates)
        self.every, self.seed = every, seed
        self.settings: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        self._sampler: CandidateSampler | None = None

    def __call__(self, task: PriorTask, data: Any, state: State, runtime: Any) -> dict[str, Any]:
        """See `vqim.training.task.Evaluator`.

        Returns: for every rate and classifier, the share of accepted pictures whose wanted class it holds likeliest
        (`top1`) and its mean probability of that class; and an accepted picture of each of eight classes."""
        if self._sampler is None:
            sampler = Sampler(task.prior, runtime, self.batch_size, dtype=task.dtype, **self.settings)
            self._sampler = CandidateSampler(task, sampler, list(self.classifiers.values()))
        labels_N = np.repeat(np.arange(task.num_classes, dtype=np.int32), self.num_candidates)
        shown, scores, hits = [], [], []
        for batch in self._sampler(state, labels_N, self.seed):
            scores.append(batch.scores_MB)
            hits.append(batch.hits_MB)
            shown.append(batch.images_BHWC[batch.labels_B < NUM_SHOWN])
        scores_MN, hits_MN, shown_NHWC = np.concatenate(scores, 1), np.concatenate(hits, 1), np.concatenate(shown)
        results: dict[str, Any] = {}
        for rate in self.rates:
            accepted_N = accept(scores_MN[0], labels_N, rate)
            for m, name in enumerate(self.classifiers):
                results[f"rejection/{name}_top1_at_{rate:g}"] = float(hits_MN[m, accepted_N].mean())
                results[f"rejection/{name}_probability_at_{rate:g}"] = float(np.exp(scores_MN[m, accepted_N]).mean())
            # Of every class the first that is accepted: not the best one.
            _, first = np.unique(labels_N[accepted_N], return_index=True)
            results[f"images/accepted_at_{rate:g}"] = shown_NHWC[np.flatnonzero(accepted_N)[first[:NUM_SHOWN]]]
        return results
