"""What a prior over tokens promises, and what draws from it.

    B batch, N positions, K codes a position, V vocabulary, S draws of an image, L layers, D width
"""
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.grid import TokenGrid
from vqim.contracts.runtime import Runtime


class Prior(Protocol):
    """A distribution of tokens, of any order and any way of learning. A module: its methods are called by `apply`.

    Attributes:
      grid: of the tokens.
      num_classes: of the labels; 0 models images without them.
    """

    grid: TokenGrid
    num_classes: int

    def loss(
        self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss, a scalar, and what is shown beside it. Only the prior knows whether these are bits.

        Labels of -1, or none at all, are classes that are not told.
        """
        ...

    def measure(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> dict[str, Tensor]:
        """Of each image, float32 [B] by name: 'bits_per_token' only where it is a likelihood.

        Without a key in the context. A prior whose measure draws (masks, say) takes fixed keys for it.
        """
        ...


@runtime_checkable
class Expecting(Protocol):
    """A prior that can say which token it expects at each position, given others of the same image."""

    def expected(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """Teacher-forced: int64 [B, N, K] (SeQ-GAN section 3.2)."""
        ...


@runtime_checkable
class Featuring(Protocol):
    """A prior whose layers give features of an image.

    Attributes:
      num_layers: L.
      width: D.
    """

    num_layers: int
    width: int

    def features(self, tokens_BNK: Tensor, context: Context) -> Tensor:
        """Float32 [L, B, D], averaged over positions; classes are not told (ViT-VQGAN section 4.2)."""
        ...


class Stepwise(Prior, Protocol):
    """A prior that is drawn from one code at a time: raster, channel and depth orders are all of this kind.

    Draw number s is the code of channel s % K at position s // K.

    Attributes:
      num_steps: S = N K.
      vocabulary: the largest of the grid's.
    """

    num_steps: int
    vocabulary: int

    def empty_cache(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """What steps remember of those before: zeros [layers, B, ...] by name."""
        ...

    def step(
        self, drawn_BS: Tensor, labels_B: Tensor | None, cache: dict[str, Tensor], step: Tensor, context: Context,
    ) -> Tensor:
        """Logits of one draw, float32 [B, V], given those before it.

        Args:
          drawn_BS: the draws so far; those of this step and after it are ignored.
          labels_B: classes, -1 or None where not told.
          cache: of the steps before; this step writes into it.
          step: integer scalar tensor, so that one compiled program serves every step.
          context: without a key.
        """
        ...


Draw = Callable[..., Tensor]
"""draw(arrays, labels_B, numbers_B, seed, given_BNK=None): int64 tokens [B, N, K] on the device. See `Sampler.bind`."""


class Sampler(Protocol):
    """A way to draw from a prior, with its settings, which a gin file binds once."""

    def bind(self, prior: Any, runtime: Runtime, batch_size: int, dtype: torch.dtype) -> Draw:
        """A function that draws images' tokens.

        Its arguments: the prior's arrays; int32 classes [B], -1 where none is told; the images' numbers [B] and a
        seed, on which alone the randomness of an image depends, whatever batch it is in; and tokens [B, N, K] that are
        given, -1 where they are to be drawn.

        Raises:
          ValueError: the prior cannot be drawn from so, or a setting is out of its range.
        """
        ...

    def with_settings(self, **settings: float | int | None) -> "Sampler":
        """The same with other values of some settings; ValueError for one that it does not have."""
        ...


def check_numbers(numbers_B: np.ndarray, batch_size: int, name: str = "numbers_B") -> None:
    """Raises ValueError unless there is one for each image of a batch."""
    if numbers_B.shape != (batch_size,):
        raise ValueError(f"{name} must have shape ({batch_size},), got {numbers_B.shape}")
