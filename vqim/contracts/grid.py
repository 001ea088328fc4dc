"""The layout of a tokenizer's tokens. This is all that a prior knows about its tokenizer.

    B batch, h w height and width of a level, K codes a position, N positions of all levels
"""
import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

Array = TypeVar("Array", Tensor, np.ndarray)


@dataclasses.dataclass(frozen=True)
class Level:
    """One rectangle of tokens: `channels` codes of a vocabulary at each of height x width positions."""

    height: int
    width: int
    channels: int
    vocabulary: int

    @property
    def num_positions(self) -> int:
        """The length of its part of a sequence."""
        return self.height * self.width


@dataclasses.dataclass(frozen=True)
class TokenGrid:
    """The tokens of one image; a sequence reads the levels in order, each in raster order.

    Codes count from zero in each level. All levels have the same number of channels.
    """

    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        channels = [level.channels for level in self.levels]
        if len(set(channels)) != 1:
            raise ValueError(f"levels must be at least one, all with the same number of channels, got {channels}")

    @property
    def num_positions(self) -> int:
        """The length N of a sequence [B, N, K]."""
        return sum(level.num_positions for level in self.levels)

    @property
    def num_channels(self) -> int:
        """K, the number of codes at each position."""
        return self.levels[0].channels

    @property
    def codebook_names(self) -> tuple[str, ...]:
        """Each level's name in the summaries of code usage: `codebook`, or `codebook/level_0` and so on."""
        if len(self.levels) == 1:
            return ("codebook",)
        return tuple(f"codebook/level_{i}" for i in range(len(self.levels)))

    def split(self, tokens_BNK: Array) -> tuple[Array, ...]:
        """Splits sequences into each level's codes [B, h, w, K]."""
        indices, start = [], 0
        for level in self.levels:
            part = tokens_BNK[:, start:start + level.num_positions]
            indices.append(rearrange(part, "b (h w) k -> b h w k", h=level.height, w=level.width))
            start += level.num_positions
        return tuple(indices)

    def as_lists(self) -> list[list[int]]:
        """[[height, width, channels, vocabulary], ...], for metadata."""
        return [list(dataclasses.astuple(level)) for level in self.levels]


def join(indices: Sequence[Tensor]) -> Tensor:
    """Joins each level's codes [B, h, w, K] to sequences [B, N, K]: the inverse of `TokenGrid.split`."""
    return torch.cat([rearrange(part, "b h w k -> b (h w) k") for part in indices], 1)
