"""Evaluation is passes times metrics: a pass yields batches of images and tokens, a metric measures them.

    B images of a batch, C image channels, H W image size, N positions, K codes a position, L layers, Y classes
"""
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

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
      values: a float each.
      title: what the places are.
    """

    values: tuple[float, ...]
    title: str


@dataclasses.dataclass(frozen=True)
class Items:
    """A batch of what a pass yields, on the device; None for what this pass does not have.

    Attributes:
      valid_B: False for what only fills the batch.
      labels_B: int64 classes, -1 where there is none.
      originals_BCHW: float32 in [0, 1].
      images_BCHW: reconstructions or samples, float32 in [0, 1], rounded to 8 bits as an image file is.
      tokens_BNK: int64.
      location_BCHW, log_scale_BCHW: what a decoder says of the originals' distribution, where it does
        (`tokenizer.losses.logit_laplace`).
      logits_LBY: class logits of each layer.
      measures: by name a float32 for each item, [B], such as a prior's bits per token.
    """

    valid_B: Tensor
    labels_B: Tensor | None = None
    originals_BCHW: Tensor | None = None
    images_BCHW: Tensor | None = None
    tokens_BNK: Tensor | None = None
    location_BCHW: Tensor | None = None
    log_scale_BCHW: Tensor | None = None
    logits_LBY: Tensor | None = None
    measures: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class About:
    """What is known of a pass before it begins.

    Attributes:
      name: of the pass: 'reconstructions', 'samples' ...
      num_items: in all.
      grid: of the tokens; None without tokens.
      num_classes: of the labels; 0 without classes.
    """

    name: str
    num_items: int
    grid: TokenGrid | None
    num_classes: int


class Tally(Protocol):
    """Adds up on the host, in float64, what a metric observed."""

    def add(self, observed: Mapping[str, np.ndarray], valid_B: np.ndarray) -> None:
        """Adds a batch; what `valid_B` says to be filling is ignored."""
        ...

    def result(self) -> dict[str, Any]:
        """Floats, images (uint8 [B, H, W, 3]), `Histogram`s, `Curve`s or text, by name."""
        ...


class Metric(Protocol):
    """Measures the items of any pass that has what it needs. Values over a set belong in the tally.

    Attributes:
      needs: names of the fields of `Items` that it reads.
      frozen: networks that it looks through, by name.
    """

    needs: tuple[str, ...]
    frozen: Mapping[str, Frozen]

    def observe(self, items: Items, frozen: Mapping[str, State], context: Context) -> dict[str, Tensor]:
        """On the device, part of the pass's program: arrays [B, ...] by name."""
        ...

    def tally(self, about: About) -> Tally:
        """A fresh one."""
        ...


class Evaluation(Protocol):
    """An evaluator at work. Iterating does it, a batch at a time, so that signals are met in between."""

    def __iter__(self) -> Iterator[None]: ...

    def result(self) -> dict[str, Any]:
        """After the iteration: results by the names under which summaries show them."""
        ...


class Evaluator(Protocol):
    """Something to be measured now and then, and at the end of training: most often a pass with its metrics.

    Attributes:
      every: how many steps lie between two measurements; 0 for the end alone.
    """

    every: int

    def begin(self, task: Task, data: Dataset, state: State, runtime: Runtime) -> Evaluation:
        """Measures a task's state."""
        ...
