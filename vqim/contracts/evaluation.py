"""Evaluation combines passes with metrics: a pass yields batches of images and tokens, and metrics measure them.

    B images of a batch, C image channels, H W image size, N positions (items of a whole pass, in `ItemValues`),
    K codes a position, L layers, Y classes
"""
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.data import Dataset
from vqim.contracts.frozen import Frozen
from vqim.contracts.grid import TokenGrid
from vqim.contracts.runtime import Runtime
from vqim.contracts.task import Task
from vqim.state.leaf import State


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Values to be shown as a histogram."""

    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Curve:
    """One value for each of a few places, such as accuracy by layer; shown as a plot over them.

    Attributes:
      values: one float for each place.
      title: what the places are, such as 'layer'.
    """

    values: tuple[float, ...]
    title: str


@dataclasses.dataclass(frozen=True)
class Lookup:
    """What a quantizer looked up in a codebook of V codes of Z dimensions, without gradients.

    Attributes:
      latents_BPZ: float32, the P latents of each image, as they are compared with codes.
      codebook_VZ: float32, the codes that they are compared with.
    """

    latents_BPZ: Tensor
    codebook_VZ: Tensor


@dataclasses.dataclass(frozen=True)
class Items:
    """A batch from a pass, on the device. A field is None where this pass does not have it.

    Attributes:
      valid_B: False for an item that only fills the batch.
      labels_B: int64 classes, -1 for none.
      originals_BCHW: float32 in [0, 1].
      images_BCHW: reconstructions or samples, float32 in [0, 1], rounded to 8 bits as in an image file.
      tokens_BNK: int64 tokens.
      location_BCHW: location of the distribution that the decoder gives for the originals, if it gives one
        (`tokenizer.losses.logit_laplace`).
      log_scale_BCHW: log scale of that distribution.
      logits_LBY: class logits of each layer.
      lookups: for each level of tokens what the quantizer looked up; none where it does not look codes up.
      disturbed_tokens: int64 tokens [B, N, K] of the same images after changes that hardly show, by the change's name.
      measures: float32 [B] by name, one value for each item, such as a prior's bits per token.
      references_BCHW: real images, float32 in [0, 1], with which a set of samples is compared; none belongs to an item.
      references_valid_B: False for a reference that only fills the batch.
    """

    valid_B: Tensor
    labels_B: Tensor | None = None
    originals_BCHW: Tensor | None = None
    images_BCHW: Tensor | None = None
    tokens_BNK: Tensor | None = None
    location_BCHW: Tensor | None = None
    log_scale_BCHW: Tensor | None = None
    logits_LBY: Tensor | None = None
    lookups: tuple[Lookup, ...] = ()
    disturbed_tokens: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    measures: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    references_BCHW: Tensor | None = None
    references_valid_B: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class About:
    """What is known about a pass before it begins.

    Attributes:
      name: the name of the pass: 'reconstructions', 'samples' ...
      num_items: the number of items in the whole pass.
      grid: the layout of the tokens; None without tokens.
      num_classes: the number of classes; 0 without classes.
      protocol: what decides the results besides the metrics: split, crop, sampler ...; for people, and to be compared.
      num_references: the number of real images that come as `Items.references_BCHW`; 0 for none.
      memory: what tallies keep for the same pass's next measurement in this process; a new run of it begins empty, so
        that no number may depend on it.
    """

    name: str
    num_items: int
    grid: TokenGrid | None
    num_classes: int
    protocol: Mapping[str, str] = dataclasses.field(default_factory=dict)
    num_references: int = 0
    memory: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, compare=False)


class Tally(Protocol):
    """Adds up what a metric observed, on the host and in float64."""

    def add(self, observed: Mapping[str, np.ndarray], valid_B: np.ndarray) -> None:
        """Adds a batch; items where `valid_B` is False are ignored."""
        ...

    def result(self) -> dict[str, Any]:
        """Floats, images (uint8 [B, H, W, 3]), `Histogram`s, `Curve`s or text, by name."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """A tally that can be kept on disk, so that an evaluation goes on after a kill. One that cannot begins anew."""

    def state(self) -> dict[str, np.ndarray]:
        """All that has been added up, by names without order."""
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes the place of a new tally, with the same result to a bit as if there had been no break."""
        ...


@runtime_checkable
class Selective(Protocol):
    """A tally that needs only some of the items, such as images to be shown; the rest is not computed for it."""

    def looks_at(self, count: int) -> bool:
        """Whether it needs one of the next `count` items. If not, `add` gets nothing observed, but their validity."""
        ...


@runtime_checkable
class ItemValues(Protocol):
    """A tally some of whose results are means over items, so that two runs can be compared item by item."""

    def values(self) -> dict[str, np.ndarray]:
        """float32 [N] in the order of the items, by the name of the result that is their mean."""
        ...


@runtime_checkable
class Described(Protocol):
    """A metric that says how it measures, for the protocol of its results; of the pass it need not say anything."""

    def describe(self) -> dict[str, str]:
        """What decides its numbers, such as 'compares', 'extractor', 'weights', 'rounding', 'definition'."""
        ...


class Metric(Protocol):
    """Measures the items of any pass that has the fields it needs. Values over a whole set are computed by the tally.

    Attributes:
      frozen: frozen networks that it uses, by name.
    """

    frozen: Mapping[str, Frozen]

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the `Items` fields that it reads; an attribute will do."""
        ...

    def observe(self, items: Items, frozen: Mapping[str, State], context: Context) -> dict[str, Tensor]:
        """Arrays [B, ...] by name, computed on the device as part of the pass's program."""
        ...

    def tally(self, about: About) -> Tally:
        """A new, empty tally."""
        ...


class Evaluation(Protocol):
    """A running evaluator. Each iteration evaluates one batch, so that signals can be handled in between."""

    def __iter__(self) -> Iterator[None]: ...

    def result(self) -> dict[str, Any]:
        """The results, by their names in the summaries; to be called after the iteration."""
        ...


class Evaluator(Protocol):
    """A measurement at regular steps and at the end of training; most often a pass with its metrics.

    Attributes:
      every: the number of steps between two measurements; 0 measures only at the end.
    """

    every: int

    def begin(self, task: Task, data: Dataset, state: State, runtime: Runtime) -> Evaluation:
        """Starts to measure a task's state."""
        ...
