"""The pass over images that are drawn from a prior, all or those that a classifier accepts.

    B images in a batch, N images of the pass, M candidates, P positions, K codes a position
"""
import copy
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.data import Batch, Dataset
from vqim.contracts.evaluation import About, Items, Metric
from vqim.contracts.placing import own_rows
from vqim.contracts.prior import Draw, Sampler, check_seed
from vqim.contracts.runtime import Runtime
from vqim.contracts.task import Task
from vqim.evaluation.passes import Pass, dtypes_of, place_frozen, protocol_of, split_batches
from vqim.evaluation.rejection import Acceptance, accept, check_classifier, groups, num_needed, verdicts_of
from vqim.state import sections
from vqim.state.leaf import State, select
from vqim.tokenizer.model import images_to_float


class Samples(Pass):
    """Images drawn from a prior. Each depends only on its number and the seed, not on the batch size.

    Args:
      num_images: the number of images; for a prior with classes, the number for each class, unless there are `labels`.
      metrics, batch_size, every, section, ema: see `Pass`.
      num_classes: the number of classes to use, from the first on; None uses all.
      labels: classes by number, such as those of a training set, used in turn for `num_images` images in all, in place
        of `num_images` of each class.
      sampler: a sampler to use instead of the prior's own.
      seed: seed for the draws.
      reference_split: the split whose images metrics of a set compare the samples with; None for no such metrics, or
        for those with a file of statistics.
      acceptance: a classifier, and the share of the drawn images that it accepts, which alone are measured; there are
        still `num_images` of each class. None measures all that are drawn.
    """

    section = "samples"

    def __init__(
        self, metrics: Sequence[Metric], num_images: int, batch_size: int, every: int = 0,
        num_classes: int | None = None, sampler: Sampler | None = None, seed: int = 0, section: str | None = None,
        reference_split: str | None = None, acceptance: Acceptance | None = None, ema: bool = True,
        labels: Sequence[int] | None = None,
    ):
        super().__init__(metrics, batch_size, every, section, ema)
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        check_seed(seed)
        if labels is not None and (not len(labels) or num_classes is not None):
            raise ValueError("labels must be one class or more, and take the place of num_classes; got "
                             f"{len(labels)} labels and num_classes {num_classes}")
        self.reference_split, self.given_labels = reference_split, labels
        self.num_images, self.num_classes, self.sampler, self.seed = num_images, num_classes, sampler, seed
        self.acceptance = acceptance or Acceptance()
        self._draw: tuple[Any, ...] = ()

    def with_settings(self, task: Task, **settings: Any) -> "Samples":
        """The same pass with other settings of its sampler; `acceptance_rate` is one of them.

        Both share what they compile.

        Raises:
          ValueError: the sampler has no such setting, or a value is out of its range.
        """
        other = copy.copy(self)
        if "acceptance_rate" in settings:
            other.acceptance = dataclasses.replace(self.acceptance, acceptance_rate=settings.pop("acceptance_rate"))
        other.sampler = (self.sampler or _of_a_prior(task).sampler).with_settings(**settings)
        other._draw = ()
        return other

    def check(self, task: Task, runtime: Runtime) -> None:
        """Raises ValueError unless sampler and acceptance fit the prior, as far as can be told without drawing."""
        self._check_acceptance(task)
        bind_sampler(task, runtime, self.batch_size, self.sampler)

    def _check_acceptance(self, task: Task) -> None:
        objective, classifier = _of_a_prior(task), self.acceptance.classifier
        if self.acceptance.acceptance_rate == 1:
            return
        if self.given_labels is not None:
            raise ValueError(f"acceptance_rate {self.acceptance.acceptance_rate} is for num_images of each class, of "
                             "which a share is accepted; leave labels out")
        assert classifier is not None
        if not objective.num_classes:
            raise ValueError(f"acceptance_rate {self.acceptance.acceptance_rate} needs a prior with classes, by which "
                             "the classifier judges")
        check_classifier(classifier, objective.num_classes, objective.tokenizer.image_size)

    def labels(self, task: Task) -> np.ndarray:
        """The class of every image, in order; -1 without classes."""
        num_classes: int = _of_a_prior(task).num_classes
        if self.given_labels is not None:
            given = np.asarray(self.given_labels, np.int32)
            if not num_classes:
                raise ValueError("labels need a prior that was trained with classes")
            if given.min() < 0 or given.max() >= num_classes:
                raise ValueError(f"labels must be classes of the prior, from 0 to {num_classes - 1}, got "
                                 f"{given.min()} to {given.max()}")
            return np.resize(given, self.num_images)
        shown = num_classes if self.num_classes is None else min(num_classes, self.num_classes)
        return np.repeat(np.arange(shown) if num_classes else np.array([-1]), self.num_images).astype(np.int32)

    def about(self, task: Task, data: Dataset) -> About:
        """See `Pass`."""
        objective = _of_a_prior(task)
        labels_N, sampler = self.labels(task), self.sampler or objective.sampler
        protocol = {"labels": self._said_of(labels_N) if objective.num_classes else "none",
                    "sampler": repr(sampler), "seed": str(self.seed), **dtypes_of(task)}
        if self.acceptance.acceptance_rate < 1:
            self._check_acceptance(task)
            protocol["acceptance"] = self.acceptance.describe()
        if self.reference_split is None:
            return About(self.name, len(labels_N), objective.tokenizer.grid, objective.num_classes, protocol)
        protocol |= {"split": self.reference_split, **protocol_of(data)}
        return About(self.name, len(labels_N), objective.tokenizer.grid, objective.num_classes, protocol,
                     data.num_examples(self.reference_split))

    def _said_of(self, labels_N: np.ndarray) -> str:
        """The classes of the images, for the protocol."""
        classes = f"{len(set(labels_N.tolist()))} classes"
        if self.given_labels is None:
            return f"{self.num_images} of each of {classes}"
        return f"given ones of {classes}, sha256 {hashlib.sha256(labels_N.astype('<i4').tobytes()).hexdigest()[:16]}"

    def batch_like(self, task: Task, data: Dataset) -> Batch | None:
        """See `Pass`."""
        tokenizer = _of_a_prior(task).tokenizer
        tokens_BNK = np.zeros((self.batch_size, tokenizer.grid.num_positions, tokenizer.grid.num_channels), np.int64)
        batch = {"tokens": tokens_BNK, "labels": np.zeros(self.batch_size, np.int32),
                 "valid": np.zeros(self.batch_size, bool)}
        if self.reference_split is not None:
            size = (self.batch_size, tokenizer.image_size, tokenizer.image_size, 3)
            batch |= {"references": np.zeros(size, np.uint8), "references_valid": np.zeros(self.batch_size, bool)}
        return batch

    def batches(
        self, task: Task, data: Dataset, state: State, runtime: Runtime, first_batch: int = 0,
    ) -> Iterator[dict[str, Tensor]]:
        """See `Pass`."""
        if not self._draw or self._draw[0] is not task or self._draw[1] is not runtime:
            self._draw = (task, runtime, bind_sampler(task, runtime, self.batch_size, self.sampler))
        if self.reference_split is None:
            yield from self._drawn(task, state, runtime, first_batch)
            return
        split, size = self.reference_split, self.batch_size
        drawn = _filled(lambda first: self._drawn(task, state, runtime, first), first_batch,
                        len(self.labels(task)), size, runtime)
        real = _filled(lambda first: split_batches(data, split, size, runtime, first), first_batch,
                       data.num_examples(split), size, runtime)
        yield from _beside(drawn, real, runtime)

    def _drawn(self, task: Task, state: State, runtime: Runtime, first_batch: int) -> Iterator[dict[str, Tensor]]:
        draw, labels_N, first = self._draw[2], self.labels(task), first_batch * self.batch_size
        if self.acceptance.acceptance_rate < 1:
            return accepted_batches(draw, self.acceptance, task, state, runtime, labels_N, self.batch_size, self.seed,
                                    first)
        return draw_batches(draw, task, state, runtime, labels_N[first:], self.batch_size, self.seed, first=first)

    def items(
        self, task: Task, state: State, batch: dict[str, Tensor], context: Context, pictures: bool = True,
    ) -> Items:
        """See `Pass`."""
        objective: Any = task.objective
        images_BCHW = objective.images(state, batch["tokens"], context) if pictures else None
        references_BCHW = images_to_float(batch["references"]) if "references" in batch else None
        return Items(batch["valid"], batch["labels"].long(), images_BCHW=images_BCHW, tokens_BNK=batch["tokens"],
                     references_BCHW=references_BCHW, references_valid_B=batch.get("references_valid"))


def _filled(
    batches_from: Callable[[int], Iterable[dict[str, Tensor]]], first_batch: int, num_images: int, batch_size: int,
    runtime: Runtime,
) -> Iterator[dict[str, Tensor]]:
    """Batches from one on; if there are fewer, the last of all, in which nothing counts."""
    last = max(0, (num_images - 1) // batch_size)
    for batch in batches_from(min(first_batch, last)):
        yield batch if first_batch <= last else batch | none_valid(batch_size, runtime)


def _beside(
    drawn: Iterable[dict[str, Tensor]], real: Iterable[dict[str, Tensor]], runtime: Runtime,
) -> Iterator[dict[str, Tensor]]:
    """Batches of samples and of real images side by side; the shorter one is filled up by what does not count."""
    last: dict[str, dict[str, Tensor]] = {}
    for one, other in itertools.zip_longest(drawn, real):
        for name, batch in (("drawn", one), ("real", other)):
            # Once all are drawn, the last batch is decoded again: one program serves every batch.
            last[name] = batch or last[name] | none_valid(len(last[name]["valid"]), runtime)
        if "images" not in last["real"]:
            raise ValueError("reference_split: this run's data are tokens, without the images that samples could be "
                             "compared with; give evaluation.FeatureDistances a reference file")
        yield last["drawn"] | {"references": last["real"]["images"], "references_valid": last["real"]["valid"]}


def none_valid(batch_size: int, runtime: Runtime) -> dict[str, Tensor]:
    """The mask of a batch in which nothing counts."""
    return runtime.put({"valid": np.zeros(batch_size // runtime.process_count, bool)})


def bind_sampler(task: Task, runtime: Runtime, batch_size: int, sampler: Sampler | None = None) -> Draw:
    """A function that draws a batch of tokens from a task's prior, with its own sampler or another one."""
    objective = _of_a_prior(task)
    sampler = sampler or objective.sampler
    objective.check_sampler(sampler)
    return sampler.bind(objective.prior, runtime, batch_size, task.dtype)


def _of_a_prior(task: Task) -> Any:
    """A task's objective; ValueError unless it is a prior's."""
    if not hasattr(task.objective, "prior"):
        raise ValueError(f"samples need a prior, this run trains a {task.objective.name}")
    return task.objective


def draw_batches(
    draw: Draw, task: Task, state: State, runtime: Runtime, labels_N: np.ndarray, batch_size: int, seed: int,
    given_NPK: np.ndarray | None = None, first: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Tokens, labels and validity on the device, [batch_size, ...] each, until there is one for each label.

    The images are numbered from `first` on; image number i from one seed is the same in batches of any size.
    """
    arrays: State = task.objective.prior_arrays(state)  # type: ignore[attr-defined]
    own = own_rows(batch_size, runtime)
    for start in range(0, len(labels_N), batch_size):
        numbers_B = np.arange(start, start + batch_size)
        valid_B = numbers_B < len(labels_N)
        rows_B = np.minimum(numbers_B, len(labels_N) - 1)
        labels_B = labels_N[rows_B]
        tokens_BNK = draw(arrays, labels_B, first + numbers_B, seed, None if given_NPK is None else given_NPK[rows_B])
        yield {"tokens": tokens_BNK, **runtime.put({"labels": labels_B[own], "valid": valid_B[own]})}


def accepted_batches(
    draw: Draw, acceptance: Acceptance, task: Task, state: State, runtime: Runtime, labels_N: np.ndarray,
    batch_size: int, seed: int, first: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """As `draw_batches`, but only images that a classifier accepts among 1 / rate as many candidates.

    Args:
      draw, task, state, runtime, batch_size, seed: see `draw_batches`.
      acceptance: the classifier and the rate.
      labels_N: classes in ascending order, all as often.
      first: the number of the first accepted image; candidates of classes before it are not drawn.
    """
    classifier, rate = acceptance.classifier, acceptance.acceptance_rate
    assert classifier is not None
    arrays = select(place_frozen({"classifier": classifier}, runtime), sections.frozen("classifier"))

    def logits(state: State, arrays: State, batch: dict[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            context = Context(runtime.kernels, task.dtype, evaluation_dtype=task.evaluation_dtype)
            images_BCHW = task.objective.images(state, batch["tokens"], context)  # type: ignore[attr-defined]
            return [classifier(arrays, images_BCHW, context=Context(runtime.kernels))]

    program = runtime.compile(logits)
    classes, counts = np.unique(labels_N, return_counts=True)
    num_candidates = num_needed(int(counts[0]), rate)
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    num_waiting, num_before = 0, 0
    # A class is judged as a whole; several small ones share batches.
    for start, labels_M in groups(np.repeat(classes, num_candidates), batch_size, split_classes=False):
        num_accepted = len(labels_M) // num_candidates * int(counts[0])
        num_before += num_accepted
        if num_before <= first:
            continue
        tokens, found = [], []
        for batch in draw_batches(draw, task, state, runtime, labels_M, batch_size, seed, first=start):
            tokens_BPK, logits_BY = runtime.fetch([batch["tokens"], *program(state, arrays, batch)])
            tokens.append(tokens_BPK)
            found.append(logits_BY)
        (scores_M,), _ = verdicts_of([np.concatenate(found)[:len(labels_M)]], labels_M)
        kept_M = accept(scores_M, labels_M, rate)
        accepted = np.concatenate(tokens)[:len(labels_M)][kept_M], labels_M[kept_M]
        skipped = max(0, first - (num_before - num_accepted))
        waiting.append((accepted[0][skipped:], accepted[1][skipped:]))
        num_waiting += num_accepted - skipped
        is_last = num_before == len(labels_N)
        while num_waiting >= batch_size or is_last and num_waiting:
            tokens_NPK, labels_N_ = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
            yield _batch(tokens_NPK[:batch_size], labels_N_[:batch_size], batch_size, runtime)
            waiting = [(tokens_NPK[batch_size:], labels_N_[batch_size:])]
            num_waiting = len(waiting[0][0])


def _batch(
    tokens_NPK: np.ndarray, labels_N: np.ndarray, batch_size: int, runtime: Runtime,
) -> dict[str, Tensor]:
    """At most `batch_size` images on the device; the last one fills up the batch."""
    rows_B, own = np.minimum(np.arange(batch_size), len(labels_N) - 1), own_rows(batch_size, runtime)
    return runtime.put({"tokens": tokens_NPK[rows_B][own], "labels": labels_N[rows_B][own],
                        "valid": (np.arange(batch_size) < len(labels_N))[own]})
