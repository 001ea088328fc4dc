"""The contracts for a prior over tokens and for a sampler that draws from it.

    B batch, N positions, K codes a position, V vocabulary, S draws of an image, L layers, D width
"""
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from vqim.contracts.context import Context, Kernels
from vqim.contracts.grid import TokenGrid
from vqim.contracts.runtime import Runtime


class Prior(Protocol):
    """A distribution of tokens, in any order and learnt in any way. It is a module, called with `apply`.

    Attributes:
      grid: the layout of the tokens.
      num_classes: the number of classes; 0 models images without classes.
    """

    grid: TokenGrid
    num_classes: int

    def loss(
        self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss, a scalar, and metrics to be shown. Only the prior knows whether these are bits.

        A label of -1, or None instead of labels, means that the class is not told.
        """
        ...

    def measure(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> dict[str, Tensor]:
        """Measures of each image, float32 [B] by name: 'bits_per_token' only where it is a likelihood.

        The context has no key. A prior whose measure needs random draws, such as masks, uses fixed keys.
        """
        ...


@runtime_checkable
class Expecting(Protocol):
    """A prior that can say which token it expects at each position, given other tokens in the same image."""

    def expected(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """The expected tokens, teacher-forced: int64 [B, N, K] (SeQ-GAN section 3.2)."""
        ...


@runtime_checkable
class Featuring(Protocol):
    """A prior whose layers give features of an image.

    Attributes:
      num_layers: L, the number of layers.
      width: D, the number of features.
    """

    num_layers: int
    width: int

    def features(self, tokens_BNK: Tensor, context: Context) -> Tensor:
        """Features, float32 [L, B, D], averaged over positions, without classes (ViT-VQGAN section 4.2)."""
        ...


class Stepwise(Prior, Protocol):
    """A prior that gives one code at a time, in raster, channel or depth order.

    Draw number s is the code of channel s % K at position s // K.

    Attributes:
      num_steps: S = N K, the number of draws.
      vocabulary: the largest vocabulary in the grid.
    """

    num_steps: int
    vocabulary: int

    def empty_cache(
        self, batch_size: int, dtype: torch.dtype, device: torch.device, kernels: Kernels,
    ) -> dict[str, Tensor]:
        """An empty cache of earlier steps: arrays [layers, B, ...] by name, as from `Kernels.empty_cache`."""
        ...

    def step(
        self, drawn_BS: Tensor, labels_B: Tensor | None, cache: dict[str, Tensor], step: Tensor, context: Context,
    ) -> Tensor:
        """Logits of one draw, float32 [B, V], given those before it.

        Args:
          drawn_BS: the draws so far; those of this step and after it are ignored.
          labels_B: classes; -1 or None where they are not told.
          cache: what earlier steps wrote; this step writes into it.
          step: integer scalar tensor, so that one compiled program serves every step.
          context: a context without a key. Entries of a cache from `context.reach` on need not be read.
        """
        ...


class Filling(Prior, Protocol):
    """A prior that tells all codes of an image at once, given those that are known."""

    def logits(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """Logits of every code, float32 [B, N, K, V]; -inf for codes that a level does not have.

        Args:
          tokens_BNK: the known tokens; -1 where one is masked. Logits of known ones mean nothing.
          labels_B: classes; -1 or None where they are not told.
          context: a context without a key.
        """
        ...


Draw = Callable[..., Tensor]
"""draw(arrays, labels_B, numbers_B, seed, given_BNK=None): int64 tokens [B, N, K] on the device. See `Sampler.bind`."""


class Sampler(Protocol):
    """A method of drawing from a prior, with its settings, which a gin file binds once.

    A class attribute `any_order` that is True says that given tokens may lie anywhere, and that what is drawn depends
    on all of them. Without it, a token is drawn knowing only those before it.
    """

    def bind(self, prior: Any, runtime: Runtime, batch_size: int, dtype: torch.dtype) -> Draw:
        """A function that draws images' tokens.

        Its arguments are the prior's arrays; int32 classes [B], -1 where none is told; the images' numbers [B]; a seed;
        and given tokens [B, N, K], -1 where they are to be drawn. The randomness of an image depends only on its number
        and the seed, whatever batch it is in.

        Raises:
          ValueError: this sampler cannot draw from the prior, or a setting is out of its range.
        """
        ...

    def with_settings(self, **settings: Any) -> "Sampler":
        """The same sampler with other values for some settings; ValueError for a setting that it does not have."""
        ...


def check_numbers(numbers_B: np.ndarray, batch_size: int, name: str = "numbers_B") -> None:
    """Raises ValueError unless there is one number for each image in a batch."""
    if numbers_B.shape != (batch_size,):
        raise ValueError(f"{name} must have shape ({batch_size},), got {numbers_B.shape}")


def check_seed(seed: int) -> None:
    """Raises ValueError unless keys, which are int32, can be made from a seed."""
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed must be at least 0 and below 2^31, got {seed}")
