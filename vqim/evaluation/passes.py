"""Passes: each yields items batch by batch, and any number of metrics measure them at once.

    B images in a batch
"""
import abc
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.data import Batch, Dataset
from vqim.contracts.evaluation import About, Evaluation, Items, Metric
from vqim.contracts.frozen import Frozen, merge_frozen
from vqim.contracts.placing import own_rows, place
from vqim.contracts.prior import Draw, Sampler
from vqim.contracts.runtime import Runtime
from vqim.contracts.task import Task
from vqim.state import sections
from vqim.state.leaf import State, prefixed, select
from vqim.tokenizer.model import images_to_float


class Pass(abc.ABC):
    """An evaluator that yields items and gives all of them to each metric.

    Metrics name the results. A name without a section, such as 'psnr', gets the pass's section as its prefix. For
    samples, all names except images get this prefix, so that 'codebook/usage' is not that of the reconstructions.

    Args:
      metrics: any metrics whose needed fields this pass has.
      batch_size: the number of items in a batch, over all processes.
      every: the number of steps between two measurements; 0 measures only at the end.
      section: the prefix of results' names; by default the pass's own.
    """

    section = "evaluation"

    def __init__(self, metrics: Sequence[Metric], batch_size: int, every: int = 0, section: str | None = None):
        self.name, self.section = section or type(self).__name__.lower(), section or self.section
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if every < 0:
            raise ValueError(f"every must be at least 0, got {every}")
        self.metrics, self.batch_size, self.every = tuple(metrics), batch_size, every
        self._bound: tuple[Any, ...] = ()

    def begin(self, task: Task, data: Dataset, state: State, runtime: Runtime) -> Evaluation:
        """See `vqim.contracts.evaluation.Evaluator`."""
        # Compiled programs and constants stay for the next measurement of the same task.
        if not self._bound or self._bound[0] is not task or self._bound[1] is not runtime:
            self._bound = (task, runtime, _Program(self, task, runtime))
        return _Evaluation(self, self._bound[2], task, data, state, runtime)

    def shown_name(self, name: str) -> str:
        """The name of a result in the summaries."""
        has_section = name.startswith("images/") or "/" in name and self.section == "evaluation"
        return name if has_section else f"{self.section}/{name}"

    def batch_like(self, task: Task, data: Dataset) -> Batch | None:
        """Zeros with the shapes and dtypes of a batch that `items` takes; None if they are not known beforehand."""
        return None

    @abc.abstractmethod
    def about(self, task: Task, data: Dataset) -> About:
        """What is known about the pass before it begins."""

    @abc.abstractmethod
    def batches(self, task: Task, data: Dataset, state: State, runtime: Runtime) -> Iterable[dict[str, Tensor]]:
        """Device arrays from which `items` makes items."""

    @abc.abstractmethod
    def items(self, task: Task, state: State, batch: dict[str, Tensor], context: Context) -> Items:
        """The items of a batch, computed on the device as part of the pass's program."""


class SplitPass(Pass):
    """A pass over the examples of a split, from which a method of the run's objective makes items.

    Args:
      metrics, batch_size, every, section: see `Pass`.
      split: 'validation' or 'train'; the images are not augmented.
    """

    view: str

    def __init__(
        self, metrics: Sequence[Metric], batch_size: int, every: int = 0, split: str = "validation",
        section: str | None = None,
    ):
        super().__init__(metrics, batch_size, every, section)
        self.split = split

    def about(self, task: Task, data: Dataset) -> About:
        """See `Pass`."""
        tokenizer = getattr(task.objective, "tokenizer", None)
        return About(self.name, data.num_examples(self.split), tokenizer.grid if tokenizer else None,
                     data.num_classes, {"split": self.split, **protocol_of(data)})

    def batch_like(self, task: Task, data: Dataset) -> Batch:
        """See `Pass`."""
        self._check(task)
        return data.batch_like(self.batch_size)

    def _check(self, task: Task) -> None:
        if not hasattr(task.objective, self.view):
            raise ValueError(f"evaluators: {type(self).__name__} needs an objective with `{self.view}`, which "
                             f"{type(task.objective).__name__} has not")

    def batches(self, task: Task, data: Dataset, state: State, runtime: Runtime) -> Iterator[dict[str, Tensor]]:
        """See `Pass`."""
        self._check(task)
        yield from split_batches(data, self.split, self.batch_size, runtime)

    def items(self, task: Task, state: State, batch: dict[str, Tensor], context: Context) -> Items:
        """See `Pass`."""
        items: Items = getattr(task.objective, self.view)(state, batch, context)
        return items


class Reconstructions(SplitPass):
    """Images and the tokenizer's reconstructions of them, in a tokenizer's run or in a prior's run."""

    view = "reconstruct"


class Predictions(SplitPass):
    """Images in a split as a prior predicts them, token by token, and the prior's measures."""

    view = "predict"


class Classifications(SplitPass):
    """Class logits for the images of a split."""

    view = "classify"


class Samples(Pass):
    """Images drawn from a prior. Each depends only on its number and the seed, not on the batch size.

    Args:
      num_images: the number of images; for a prior with classes, the number for each class.
      metrics, batch_size, every, section: see `Pass`.
      num_classes: the number of classes to use, from the first on; None uses all.
      sampler: a sampler to use instead of the prior's own.
      seed: seed for the draws.
      reference_split: the split whose images metrics of a set compare the samples with; None for no such metrics, or
        for those with a file of statistics.
    """

    section = "samples"

    def __init__(
        self, metrics: Sequence[Metric], num_images: int, batch_size: int, every: int = 0,
        num_classes: int | None = None, sampler: Sampler | None = None, seed: int = 0, section: str | None = None,
        reference_split: str | None = None,
    ):
        super().__init__(metrics, batch_size, every, section)
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        self.reference_split = reference_split
        self.num_images, self.num_classes, self.sampler, self.seed = num_images, num_classes, sampler, seed
        self._draw: tuple[Any, ...] = ()

    def labels(self, task: Task) -> np.ndarray:
        """The class of every image, in order; -1 without classes."""
        num_classes: int = _of_a_prior(task).num_classes
        shown = num_classes if self.num_classes is None else min(num_classes, self.num_classes)
        return np.repeat(np.arange(shown) if num_classes else np.array([-1]), self.num_images).astype(np.int32)

    def about(self, task: Task, data: Dataset) -> About:
        """See `Pass`."""
        objective = _of_a_prior(task)
        labels_N, sampler = self.labels(task), self.sampler or objective.sampler
        protocol = {"labels": f"{self.num_images} of each of {len(set(labels_N.tolist()))} classes"
                    if objective.num_classes else "none", "sampler": repr(sampler), "seed": str(self.seed)}
        if self.reference_split is None:
            return About(self.name, len(labels_N), objective.tokenizer.grid, objective.num_classes, protocol)
        protocol |= {"split": self.reference_split, **protocol_of(data)}
        return About(self.name, len(labels_N), objective.tokenizer.grid, objective.num_classes, protocol,
                     data.num_examples(self.reference_split))

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

    def batches(self, task: Task, data: Dataset, state: State, runtime: Runtime) -> Iterator[dict[str, Tensor]]:
        """See `Pass`."""
        if not self._draw or self._draw[0] is not task or self._draw[1] is not runtime:
            self._draw = (task, runtime, bind_sampler(task, runtime, self.batch_size, self.sampler))
        drawn = draw_batches(self._draw[2], task, state, runtime, self.labels(task), self.batch_size, self.seed)
        if self.reference_split is None:
            yield from drawn
        else:
            yield from _beside(drawn, split_batches(data, self.reference_split, self.batch_size, runtime), runtime)

    def items(self, task: Task, state: State, batch: dict[str, Tensor], context: Context) -> Items:
        """See `Pass`."""
        images_BCHW = task.objective.images(state, batch["tokens"], context)  # type: ignore[attr-defined]
        references_BCHW = images_to_float(batch["references"]) if "references" in batch else None
        return Items(batch["valid"], batch["labels"].long(), images_BCHW=images_BCHW, tokens_BNK=batch["tokens"],
                     references_BCHW=references_BCHW, references_valid_B=batch.get("references_valid"))


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


def split_batches(data: Dataset, split: str, batch_size: int, runtime: Runtime) -> Iterator[dict[str, Tensor]]:
    """The examples of a split, on the device, `batch_size` over all processes."""
    share: Iterable[Batch] = data.evaluation(
        batch_size // runtime.process_count, split=split, process_index=runtime.process_index,
        process_count=runtime.process_count)
    for batch in share:
        yield runtime.put(batch)


def protocol_of(data: Dataset) -> dict[str, str]:
    """What data say about their images, for the protocol of a result."""
    crop = {"crop": data.evaluation_crop} if hasattr(data, "evaluation_crop") else {}
    return {"image size": f"{data.image_size}x{data.image_size}", **crop}


def bind_sampler(task: Task, runtime: Runtime, batch_size: int, sampler: Sampler | None = None) -> Draw:
    """A function that draws a batch of tokens from a task's prior, with its own sampler or another one."""
    objective = _of_a_prior(task)
    return (sampler or objective.sampler).bind(objective.prior, runtime, batch_size, task.dtype)


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


class _Program:
    """A pass's compiled program for one task, and the constants of its metrics."""

    def __init__(self, owner: Pass, task: Task, runtime: Runtime):
        self._owner, self._task, self._runtime = owner, task, runtime
        users = {f"metric {number} ({type(metric).__name__})": dict(metric.frozen)
                 for number, metric in enumerate(owner.metrics)}
        self._networks = merge_frozen(users)
        shared = {name for name, network in self._networks.items() if task.objective.frozen.get(name) == network}
        self._constants = place_frozen(
            {name: network for name, network in self._networks.items() if name not in shared}, runtime)
        self._shared = [sections.frozen(name) for name in shared]
        self._run = runtime.compile(self._observe)

    def __call__(self, state: State, batch: dict[str, Tensor]) -> dict[str, dict[str, np.ndarray]]:
        """What each metric observes, by the metric's number; and `valid`."""
        observed = self._run(state, self._constants, batch)
        values = self._runtime.fetch(list(observed.values()))
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, value in zip(observed, values, strict=True):
            number, _, rest = name.partition("/")
            found.setdefault(number, {})[rest] = value
        return found

    def _observe(self, state: State, constants: State, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            context = Context(self._runtime.kernels, self._task.dtype)
            items = self._owner.items(self._task, state, batch, context)
            observed = {"valid/": items.valid_B}
            for number, metric in enumerate(self._owner.metrics):
                check_needs(metric, items, type(self._owner).__name__)
                frozen = {name: self._arrays(name, state, constants) for name in metric.frozen}
                for name, value in metric.observe(items, frozen, context.evaluation()).items():
                    observed[f"{number}/{name}"] = value
            return observed

    def _arrays(self, name: str, state: State, constants: State) -> State:
        prefix = sections.frozen(name)
        return select(state if prefix in self._shared else constants, prefix)


class _Evaluation:
    """A running pass."""

    def __init__(self, owner: Pass, program: _Program, task: Task, data: Dataset, state: State, runtime: Runtime):
        self._owner, self._program = owner, program
        self._state = state
        self._batches = owner.batches(task, data, state, runtime)
        about = owner.about(task, data)
        self._tallies = [metric.tally(about) for metric in owner.metrics]

    def __iter__(self) -> Iterator[None]:
        for batch in self._batches:
            observed = self._program(self._state, batch)
            valid_B = observed["valid"][""]
            for number, tally in enumerate(self._tallies):
                tally.add(observed.get(str(number), {}), valid_B)
            yield

    def result(self) -> dict[str, Any]:
        """See `vqim.contracts.evaluation.Evaluation`."""
        results: dict[str, Any] = {}
        for metric, tally in zip(self._owner.metrics, self._tallies, strict=True):
            for name, value in tally.result().items():
                shown = self._owner.shown_name(name)
                if shown in results:
                    raise ValueError(f"metrics: two of them measure {shown}, one is {type(metric).__name__}")
                results[shown] = value
        return results


def evaluate(evaluation: Evaluation) -> dict[str, Any]:
    """Runs a whole evaluation at once."""
    for _ in evaluation:
        pass
    return evaluation.result()


def place_frozen(networks: Mapping[str, Frozen], runtime: Runtime) -> State:
    """The arrays of frozen networks on the devices, named as in a state."""
    return place({name: leaf for network_name, network in networks.items()
                  for name, leaf in prefixed(sections.frozen(network_name), network.init_spec()).items()}, 0, runtime)


def check_needs(metric: Metric, items: Items, owner: str) -> None:
    """Raises ValueError unless a pass, `owner`, has all that a metric needs."""
    missing = [name for name in metric.needs if not _has(items, name)]
    if missing:
        raise ValueError(f"metrics: {type(metric).__name__} needs {', '.join(missing)}, which {owner} does not have "
                         "here")


def _has(items: Items, name: str) -> bool:
    return bool(items.measures) if name == "measures" else getattr(items, name) is not None
