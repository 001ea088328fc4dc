"""Passes: each yields items batch by batch, and any number of metrics measure them at once.

    B images in a batch, N items of a pass
"""
import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqim.contracts.context import Context, dtype_name
from vqim.contracts.data import Batch, Dataset
from vqim.contracts.evaluation import (
    About,
    Described,
    Evaluation,
    Items,
    ItemValues,
    Metric,
    Resumable,
    Selective,
)
from vqim.contracts.frozen import Frozen, merge_frozen
from vqim.contracts.placing import place
from vqim.contracts.runtime import Runtime
from vqim.contracts.task import Task
from vqim.evaluation.protocol import as_text, image_checksums, of_result
from vqim.evaluation.tally_state import join, part_of
from vqim.state import sections
from vqim.state.leaf import State, prefixed, select
from vqim.tokenizer.model import images_to_float

_PICTURES = {"originals_BCHW", "images_BCHW", "location_BCHW", "log_scale_BCHW"}


class Pass(abc.ABC):
    """An evaluator that yields items and gives all of them to each metric.

    Metrics name the results. A name without a section, such as 'psnr', gets the pass's section as its prefix. For
    samples, all names except images get this prefix, so that 'codebook/usage' is not that of the reconstructions.

    Args:
      metrics: any metrics whose needed fields this pass has.
      batch_size: the number of items in a batch, over all processes.
      every: the number of steps between two measurements; 0 measures only at the end.
      section: the prefix of results' names; by default the pass's own.
      ema: whether networks are measured with their moving averages, where the run keeps them.
    """

    section = "evaluation"

    def __init__(
        self, metrics: Sequence[Metric], batch_size: int, every: int = 0, section: str | None = None, ema: bool = True,
    ):
        self.name, self.section = section or type(self).__name__.lower(), section or self.section
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if every < 0:
            raise ValueError(f"every must be at least 0, got {every}")
        self.metrics, self.batch_size, self.every, self.ema = tuple(metrics), batch_size, every, ema
        self._bound = _Bound()

    def begin(self, task: Task, data: Dataset, state: State, runtime: Runtime) -> Evaluation:
        """See `vqim.contracts.evaluation.Evaluator`."""
        # Compiled programs and constants stay for the next measurement of the same task.
        if not self.ema:
            state = {name: array for name, array in state.items() if not name.startswith("ema/")}
        bound = self._bound
        if bound.program is None or bound.task is not task or bound.runtime is not runtime:
            bound.task, bound.runtime, bound.program = task, runtime, _Program(self, task, runtime)
            bound.memory = {}
        about = dataclasses.replace(self.about(task, data), memory=bound.memory)
        return PassEvaluation(self, bound.program, about, task, data, state, runtime)

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
    def batches(
        self, task: Task, data: Dataset, state: State, runtime: Runtime, first_batch: int = 0,
    ) -> Iterable[dict[str, Tensor]]:
        """Device arrays from which `items` makes items, from batch number `first_batch` on."""

    @abc.abstractmethod
    def items(
        self, task: Task, state: State, batch: dict[str, Tensor], context: Context, pictures: bool = True,
    ) -> Items:
        """The items of a batch, computed on the device as part of the pass's program.

        Without `pictures`, no metric looks at images, and none need be decoded.
        """


class SplitPass(Pass):
    """A pass over the examples of a split, from which a method of the run's objective makes items.

    Args:
      metrics, batch_size, every, section, ema: see `Pass`.
      split: 'validation' or 'train'; the images are not augmented.
      num_images: only so many of them, evenly spaced over the split and always the same; None takes all.
    """

    view: str
    has_pictures = True

    def __init__(
        self, metrics: Sequence[Metric], batch_size: int, every: int = 0, split: str = "validation",
        section: str | None = None, num_images: int | None = None, ema: bool = True,
    ):
        super().__init__(metrics, batch_size, every, section, ema)
        if num_images is not None and num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        self.split, self.num_images = split, num_images

    def about(self, task: Task, data: Dataset) -> About:
        """See `Pass`."""
        tokenizer, count = getattr(task.objective, "tokenizer", None), data.num_examples(self.split)
        protocol = {"split": self.split, **protocol_of(data), **dtypes_of(task),
                    **({} if self.ema else {"networks": "without EMA"})}
        if self.num_images is not None and self.num_images < count:
            protocol["subset"], count = f"{self.num_images} of {count} images, evenly spaced", self.num_images
        return About(self.name, count, tokenizer.grid if tokenizer else None, data.num_classes, protocol)

    def batch_like(self, task: Task, data: Dataset) -> Batch:
        """See `Pass`."""
        self._check(task)
        return data.batch_like(self.batch_size)

    def _check(self, task: Task) -> None:
        if not hasattr(task.objective, self.view):
            raise ValueError(f"evaluators: {type(self).__name__} needs an objective with `{self.view}`, which "
                             f"{type(task.objective).__name__} has not")

    def batches(
        self, task: Task, data: Dataset, state: State, runtime: Runtime, first_batch: int = 0,
    ) -> Iterator[dict[str, Tensor]]:
        """See `Pass`."""
        self._check(task)
        yield from split_batches(data, self.split, self.batch_size, runtime, first_batch, self.num_images)

    def items(
        self, task: Task, state: State, batch: dict[str, Tensor], context: Context, pictures: bool = True,
    ) -> Items:
        """See `Pass`."""
        said = {} if pictures or not self.has_pictures else {"pictures": False}
        items: Items = getattr(task.objective, self.view)(state, batch, context, **said)
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
    has_pictures = False


def split_batches(
    data: Dataset, split: str, batch_size: int, runtime: Runtime, first_batch: int = 0,
    num_examples: int | None = None,
) -> Iterator[dict[str, Tensor]]:
    """The examples of a split, or some of them, on the device, `batch_size` over all processes, from one batch on."""
    share: Iterable[Batch] = data.evaluation(
        batch_size // runtime.process_count, split=split, process_index=runtime.process_index,
        process_count=runtime.process_count, first_batch=first_batch, num_examples=num_examples)
    for batch in share:
        yield runtime.put(batch)


def protocol_of(data: Dataset) -> dict[str, str]:
    """What data say about their images, for the protocol of a result."""
    crop = {"crop": data.evaluation_crop} if hasattr(data, "evaluation_crop") else {}
    return {"image size": f"{data.image_size}x{data.image_size}", **crop}


def dtypes_of(task: Task) -> dict[str, str]:
    """The dtypes in which a pass's images and tokens were computed, for the protocol of a result."""
    prior = {"prior dtype": dtype_name(task.dtype)} if hasattr(task.objective, "prior") else {}
    return {"dtype": dtype_name(task.evaluation_dtype), **prior}


@dataclasses.dataclass
class _Bound:
    """What a pass has compiled, and for what; copies of a pass share it."""

    task: Task | None = None
    runtime: Runtime | None = None
    program: "_Program | None" = None
    memory: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


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
        self._runs: dict[tuple[int, ...], Callable[..., dict[str, Tensor]]] = {}

    def __call__(
        self, state: State, batch: dict[str, Tensor], active: tuple[int, ...],
    ) -> dict[str, dict[str, np.ndarray]]:
        """What each active metric observes, by the metric's number; and `valid`."""
        if active not in self._runs:
            self._runs[active] = self._runtime.compile(functools.partial(self._observe, active))
        observed = self._runs[active](state, self._constants, batch)
        values = self._runtime.fetch(list(observed.values()))
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, value in zip(observed, values, strict=True):
            number, _, rest = name.partition("/")
            found.setdefault(number, {})[rest] = value
        return found

    def _observe(
        self, active: tuple[int, ...], state: State, constants: State, batch: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        metrics = {number: self._owner.metrics[number] for number in active}
        pictures = any(_PICTURES & set(metric.needs) for metric in metrics.values())
        with torch.no_grad():
            context = Context(
                self._runtime.kernels, self._task.dtype, evaluation_dtype=self._task.evaluation_dtype)
            measuring = Context(self._runtime.kernels)
            items = self._owner.items(self._task, state, batch, context, pictures)
            observed = {"valid/": items.valid_B}
            if "images" in batch:  # by which two runs' items are known to be of the same images
                observed["valid/checksums"] = image_checksums(images_to_float(batch["images"]))
            for number, metric in metrics.items():
                check_needs(metric, items, type(self._owner).__name__)
                frozen = {name: self._arrays(name, state, constants) for name in metric.frozen}
                for name, value in metric.observe(items, frozen, measuring).items():
                    observed[f"{number}/{name}"] = value
            return observed

    def _arrays(self, name: str, state: State, constants: State) -> State:
        prefix = sections.frozen(name)
        return select(state if prefix in self._shared else constants, prefix)


class PassEvaluation:
    """A running pass, which can be kept and gone on with.

    Attributes:
      about: what is known about the pass.
      num_batches: the number of batches in the whole pass.
      num_done: the number of those that have been measured.
    """

    def __init__(
        self, owner: Pass, program: _Program, about: About, task: Task, data: Dataset, state: State, runtime: Runtime,
    ):
        self._owner, self._program, self.about = owner, program, about
        self._measured = task, data, state, runtime
        self.num_batches = -(-max(self.about.num_items, self.about.num_references) // owner.batch_size)
        self.num_done = 0
        self._tallies = [metric.tally(self.about) for metric in owner.metrics]
        self._checksums: list[np.ndarray] = []
        self._num_valid = 0

    def __iter__(self) -> Iterator[None]:
        task, data, state, runtime = self._measured
        for batch in self._owner.batches(task, data, state, runtime, self.num_done):
            active = tuple(number for number, tally in enumerate(self._tallies)
                           if not isinstance(tally, Selective) or tally.looks_at(self._owner.batch_size))
            observed = self._program(state, batch, active)
            valid_B = observed["valid"][""]
            self._num_valid += int(np.count_nonzero(valid_B))
            for number, tally in enumerate(self._tallies):
                tally.add(observed.get(str(number), {}), valid_B)
            if "checksums" in observed["valid"]:
                self._checksums.append(observed["valid"]["checksums"][valid_B])
            self.num_done += 1
            yield

    def result(self) -> dict[str, Any]:
        """See `vqim.contracts.evaluation.Evaluation`; a protocol as text stands beside each metric's numbers."""
        results: dict[str, Any] = {}
        for metric, tally in zip(self._owner.metrics, self._tallies, strict=True):
            for name, value in self._with_protocol(metric, tally.result()).items():
                shown = self._owner.shown_name(name)
                if shown in results:
                    raise ValueError(f"metrics: two of them measure {shown}, one is {type(metric).__name__}")
                results[shown] = value
        return results

    def _with_protocol(self, metric: Metric, found: dict[str, Any]) -> dict[str, Any]:
        """What a tally found, and how, as `protocol/<first number>`, unless it says so itself."""
        numbers = [name for name, value in found.items() if isinstance(value, int | float)]
        if not numbers or any(name.startswith("protocol/") for name in found):
            return found
        said = metric.describe() if isinstance(metric, Described) else {}
        return found | {f"protocol/{numbers[0]}": as_text(
            of_result(numbers, self.about.protocol, self._num_valid, said))}

    def values(self) -> dict[str, np.ndarray]:
        """Every item's value, float32 [N], by the name of the result that is their mean."""
        return {self._owner.shown_name(name): values_N for tally in self._tallies if isinstance(tally, ItemValues)
                for name, values_N in tally.values().items()}

    def checksums(self) -> np.ndarray | None:
        """Which images the items are of, int32 [N, 2] (`protocol.image_checksums`); None without images."""
        return np.concatenate(self._checksums) if self._checksums else None

    def not_resumable(self) -> list[str]:
        """The metrics that cannot be kept; with one of them, the evaluation cannot."""
        return [type(metric).__name__ for metric, tally in zip(self._owner.metrics, self._tallies, strict=True)
                if not isinstance(tally, Resumable)]

    def state(self) -> dict[str, np.ndarray]:
        """All that has been measured, for `restore`; only where `not_resumable` names none."""
        checksums = self.checksums()
        parts = {str(number): tally.state() for number, tally in enumerate(self._tallies)
                 if isinstance(tally, Resumable)}
        return {"num_done": np.array(self.num_done), "num_valid": np.array(self._num_valid),
                **({} if checksums is None else {"checksums": checksums}),
                **join(parts)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from what `state` gave, with the same results to a bit as if there had been no break."""
        self.num_done, self._num_valid = int(state["num_done"]), int(state["num_valid"])
        self._checksums = [state["checksums"]] if "checksums" in state else []
        for number, tally in enumerate(self._tallies):
            if isinstance(tally, Resumable):
                tally.restore(part_of(state, str(number)))


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
    value = getattr(items, name)
    return bool(value) if isinstance(value, Mapping) else value is not None
