"""A metric over a set: how far the images' mean colours, as a distribution, are from those of grey noise.

The Frechet distance of the Gaussians: |m|^2 + trace(S) with m, S mean and covariance of colours minus 1/2, to a point.

    B batch, C channels, H W image size
"""
from collections.abc import Mapping

import gin
import numpy as np
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.evaluation import About, Items
from vqim.contracts.frozen import Frozen
from vqim.state.leaf import State


class ColourDistance:
    """Shown as `colour_distance`; for reconstructions and for samples alike."""

    needs = ("images_BCHW",)
    frozen: Mapping[str, Frozen] = {}

    def observe(self, items: Items, frozen: Mapping[str, State], context: Context) -> dict[str, Tensor]:
        assert items.images_BCHW is not None
        return {"colours": items.images_BCHW.mean((2, 3))}

    def tally(self, about: About) -> "Moments":
        return Moments()


class Moments:
    """Sums of colours and of their products."""

    def __init__(self) -> None:
        self.count, self.sum_C, self.sum_CC = 0, np.zeros(3), np.zeros((3, 3))

    def add(self, observed: Mapping[str, np.ndarray], valid_B: np.ndarray) -> None:
        colours_BC = observed["colours"][valid_B].astype(np.float64) - 0.5
        self.count += len(colours_BC)
        self.sum_C += colours_BC.sum(0)
        self.sum_CC += colours_BC.T @ colours_BC

    def result(self) -> dict[str, float]:
        mean_C = self.sum_C / self.count
        covariance_CC = self.sum_CC / self.count - np.outer(mean_C, mean_C)
        return {"colour_distance": float(mean_C @ mean_C + np.trace(covariance_CC))}


gin.register(ColourDistance, module="plugin")
