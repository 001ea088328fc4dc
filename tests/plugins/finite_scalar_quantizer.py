"""Finite scalar quantisation (Mentzer et al., 2023): each of a few dimensions is rounded to one of a few levels.

    B batch, h w latent size, D latent width, Z dimensions that are rounded
"""
import math

import gin
import torch
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.grid import Level
from vqim.nn.layers import Dense
from vqim.tokenizer.model import Codes, Quantized


class FiniteScalarQuantizer(nn.Module):
    """A grid in place of a codebook; a code is its digits, the first the least significant.

    Args:
      width: of latents, on both sides.
      levels: how many each dimension has; odd, so that zero is one of them.
    """

    widening = ("project_out/",)

    def __init__(self, width: int, levels: tuple[int, ...]):
        super().__init__()
        if min(levels) < 3 or any(level % 2 == 0 for level in levels):
            raise ValueError(f"levels must be odd numbers of at least 3, got {levels}")
        self.width_in = self.width_out = width
        self.sizes = levels
        self.project_in, self.project_out = Dense(width, len(levels)), Dense(len(levels), width)

    def levels(self, height: int, width: int) -> tuple[Level, ...]:
        return (Level(height, width, channels=1, vocabulary=math.prod(self.sizes)),)

    def forward(self, latents_BhwD: Tensor, context: Context) -> Quantized:
        half_Z, places_Z = self._grid(latents_BhwD.device)
        bounded_BhwZ = torch.tanh(self.project_in(latents_BhwD, context).float()) * half_Z
        rounded_BhwZ = bounded_BhwZ.round()
        indices_Bhw = ((rounded_BhwZ + half_Z).long() * places_Z).sum(-1)
        straight_through = bounded_BhwZ + (rounded_BhwZ - bounded_BhwZ).detach()
        return Quantized(self._codes(straight_through / half_Z, context), (indices_Bhw[..., None],), losses={})

    def lookup(self, indices: tuple[Tensor, ...], context: Context) -> Codes:
        indices_Bhw1, = indices
        half_Z, places_Z = self._grid(indices_Bhw1.device)
        digits_BhwZ = indices_Bhw1 // places_Z % (2 * half_Z + 1)
        return self._codes((digits_BhwZ - half_Z) / half_Z, context)

    def _codes(self, vectors_BhwZ: Tensor, context: Context) -> Codes:
        """Points of the grid, in [-1, 1], and the same as wide as the decoder wants them."""
        return Codes(vectors_BhwZ, self.project_out(vectors_BhwZ, context))

    def _grid(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The largest digit, counted from zero in the middle, and what a digit counts in a code: int64 [Z] each."""
        places = [math.prod(self.sizes[:place]) for place in range(len(self.sizes))]
        return torch.tensor(self.sizes, device=device) // 2, torch.tensor(places, device=device)


gin.register(FiniteScalarQuantizer, module="plugin")
