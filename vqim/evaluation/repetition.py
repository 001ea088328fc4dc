"""How much a decoder repeats itself where codes are equal: the artefact that MoVQ sets out to remove (section 3.1).

    B batch, N positions, K codes a position, D values of a patch, G groups of positions with equal codes
"""
from collections.abc import Mapping
from typing import Any

import numpy as np
from einops import rearrange
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.evaluation import About, Items, Tally
from vqim.contracts.frozen import Frozen
from vqim.contracts.grid import Level
from vqim.evaluation.token_metrics import grid_of
from vqim.state.leaf import State
from vqim.tokenizer.model import float_to_images


class Repetition:
    """What the patches of an image share because their codes are equal.

    Positions of one image with the same codes make a group; a patch deviates from its group's mean. Over all positions
    that are not alone in their group:

    - `repetition/share`: their share of all positions;
    - `repetition/variance`: the variance of reconstructions over that of originals: 0 if a decoder repeats one patch;
    - `repetition/explained`: how much of the originals' deviations the reconstructions have, as the slope of one on the
      other: 0 if they repeat or deviate at random, 1 if all is brought back.
    """

    needs = ("originals_BCHW", "images_BCHW", "tokens_BNK")
    frozen: Mapping[str, Frozen] = {}

    def observe(self, items: Items, frozen: Mapping[str, State], context: Context) -> dict[str, Tensor]:
        """See `Metric`."""
        assert items.originals_BCHW is not None and items.images_BCHW is not None and items.tokens_BNK is not None
        return {"originals": float_to_images(items.originals_BCHW), "images": float_to_images(items.images_BCHW),
                "tokens": items.tokens_BNK}

    def tally(self, about: About) -> Tally:
        """See `Metric`; ValueError if tokens have several levels, whose patches overlap."""
        grid = grid_of(about, type(self).__name__)
        if len(grid.levels) > 1:
            raise ValueError(f"metrics: Repetition needs tokens of one level, got {len(grid.levels)}")
        return _Repetition(grid.levels[0])


class _Repetition:
    def __init__(self, level: Level):
        self._level = level
        self._counts = np.zeros(2, np.int64)  # of positions: all, and those that are not alone in their group
        self._products = np.zeros(3)  # of deviations: originals', reconstructions', of one with the other

    def add(self, observed: Mapping[str, np.ndarray], valid_B: np.ndarray) -> None:
        """See `Tally`."""
        originals_BND, images_BND = (self._patches(observed[name][valid_B]) for name in ("originals", "images"))
        tokens_BNK = observed["tokens"][valid_B]
        for tokens_NK, originals_ND, images_ND in zip(tokens_BNK, originals_BND, images_BND, strict=True):
            _, group_N, count_G = np.unique(tokens_NK, axis=0, return_inverse=True, return_counts=True)
            member_GN = np.arange(len(count_G))[:, None] == group_N.reshape(1, -1)
            x_ND, y_ND = (values_ND - ((member_GN @ values_ND) / count_G[:, None])[group_N.reshape(-1)]
                          for values_ND in (originals_ND, images_ND))
            self._products += (x_ND**2).sum(), (y_ND**2).sum(), (x_ND * y_ND).sum()
            self._counts += len(tokens_NK), count_G[count_G > 1].sum()

    def _patches(self, images_BHWC: np.ndarray) -> np.ndarray:
        return rearrange(images_BHWC / 255, "b (h p) (w q) c -> b (h w) (p q c)",
                         h=self._level.height, w=self._level.width)

    def result(self) -> dict[str, Any]:
        """See `Repetition`; where originals do not deviate, `variance` and `explained` are 1 and 0."""
        (positions, in_groups), (originals, images, both) = self._counts.tolist(), self._products.tolist()
        return {"repetition/share": in_groups / positions if positions else 0.0,
                "repetition/variance": images / originals if originals else 1.0,
                "repetition/explained": both / originals if originals else 0.0}

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return {"counts": self._counts, "products": self._products}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self._counts, self._products = state["counts"].copy(), state["products"].copy()
