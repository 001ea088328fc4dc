"""Where codes stand in a prior's sequence, table and head, when levels have vocabularies and positions of their own.

    B batch, N positions, K codes a position, S = N K codes of an image, s codes of one level, D width
    V largest vocabulary of a level, T all levels' vocabularies together
"""
import itertools

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.grid import TokenGrid
from vqim.nn.layers import Head
from vqim.nn.module import parameter
from vqim.state.init import Init


class Layout:
    """One sequence of all codes of an image: level after level, in each the positions in raster order, in each its K
    codes; code s of one level is that of channel s % K at position s // K.

    Vocabularies share no codes: each level has its own rows in a table of T and its own columns in a head of T.

    Attributes:
      num_steps: S, the length of the sequence.
      vocabulary: V.
      sizes: the levels' vocabularies.
      num_rows: T.
    """

    def __init__(self, grid: TokenGrid):
        self.sizes = sizes = [level.vocabulary for level in grid.levels]
        lengths = [level.num_positions * grid.num_channels for level in grid.levels]
        # Where levels begin, and the last one ends: places in the sequence, rows of the table.
        self._starts = list(itertools.accumulate(lengths, initial=0))
        self._rows = list(itertools.accumulate(sizes, initial=0))
        self.num_steps, self.vocabulary, self.num_rows = self._starts[-1], max(sizes), self._rows[-1]

    def first_row(self, places: Tensor) -> Tensor:
        """The first row in the table for the level of each place in the sequence, int64 of any shape."""
        rows = torch.zeros_like(places, dtype=torch.int64)
        for start, row in zip(self._starts[1:-1], self._rows[1:-1], strict=True):
            rows = torch.where(places >= start, row, rows)
        return rows

    def logits(self, x_BSD: Tensor, head: Head, context: Context) -> Tensor:
        """Logits [B, S, V] of a whole sequence; -inf for codes that a level does not have."""
        return torch.cat([self._of_level(x_BSD[:, start:end], level, head, context)
                          for level, (start, end) in enumerate(itertools.pairwise(self._starts))], 1)

    def logits_at(self, x_B1D: Tensor, head: Head, place: Tensor, context: Context) -> Tensor:
        """Logits [B, V] at one place, an integer scalar tensor."""
        logits_B1V = self._of_level(x_B1D, 0, head, context)
        for level, start in enumerate(self._starts[1:-1], 1):
            logits_B1V = torch.where(place >= start, self._of_level(x_B1D, level, head, context), logits_B1V)
        return logits_B1V[:, 0]

    def _of_level(self, x_BsD: Tensor, level: int, head: Head, context: Context) -> Tensor:
        logits_BsV = head.part(x_BsD, level, context)
        missing = self.vocabulary - logits_BsV.shape[-1]
        return F.pad(logits_BsV, (0, missing), value=-torch.inf) if missing else logits_BsV


def declare_positions(module: nn.Module, grid: TokenGrid, width: int, init: Init, *, codes_each: int = 1) -> list[str]:
    """Declares learned vectors for the positions of each level, or for each of a position's codes; returns their names.

    Those of a position's codes lie beside each other, in a row `codes_each` times as long.
    """
    names = ["positions_hwD", *(f"positions_{i}_hwD" for i in range(1, len(grid.levels)))]
    for name, level in zip(names, grid.levels, strict=True):
        shape = (level.height, level.width * codes_each, width)
        setattr(module, name, parameter(shape, init, "height", "width", "features"))
    return names


def join_positions(module: nn.Module, names: list[str]) -> Tensor:
    """All of these vectors, in the order of the sequence: [N, D], or [S, D] for a vector for each code."""
    parts = [rearrange(getattr(module, name), "h w d -> (h w) d") for name in names]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def class_rows(
    labels_B: Tensor | None, batch_size: int, num_classes: int, dropout_rate: float, context: Context,
    device: torch.device,
) -> Tensor:
    """The row of each image's class in a table of num_classes + 1, int64 [B]; the last row is that of untold classes.

    Labels may be None or -1. In training, a share of them is not told.
    """
    if labels_B is None or num_classes == 0:
        labels_B = torch.full((batch_size,), num_classes, dtype=torch.int64, device=device)
    labels_B = labels_B.long()
    told_B = labels_B >= 0
    key = context.draw_key("class") if dropout_rate else None
    if key is not None:
        told_B = told_B & context.kernels.keep_mask(key, dropout_rate, labels_B.shape, labels_B.device)
    return torch.where(told_B, labels_B, num_classes)
