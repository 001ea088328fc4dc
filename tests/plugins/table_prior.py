"""A prior that knows, for each class, how often each code stands at each position: several codes a position.

    B batch, N positions, K codes a position, C classes, V vocabulary
"""
import dataclasses
import math
from typing import Any

import gin
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.grid import TokenGrid
from vqim.contracts.prior import Draw
from vqim.contracts.runtime import Runtime
from vqim.nn.module import apply, parameter
from vqim.prior.sampler import with_settings
from vqim.prior.sampling import sample_logits
from vqim.state.init import Constant
from vqim.state.leaf import State
from vqim.state.random import fold_key, step_key, uniform_rows


class TablePrior(nn.Module):
    """P(x | class) = prod over positions and channels of P(x_nk | class); for one level of tokens."""

    def __init__(self, grid: TokenGrid, num_classes: int):
        super().__init__()
        self.grid, self.num_classes = grid, num_classes
        shape = (num_classes + 1, grid.num_positions * grid.num_channels * grid.levels[0].vocabulary)
        self.logits_CF = parameter(shape, Constant(0.0), "vocabulary", "features")

    def forward(self, labels_B: Tensor) -> Tensor:
        rows_B = torch.where(labels_B >= 0, labels_B, self.num_classes).long()
        grid = self.grid
        return F.embedding(rows_B, self.logits_CF).reshape(
            -1, grid.num_positions, grid.num_channels, grid.levels[0].vocabulary)

    def loss(self, tokens_BNK: Tensor, labels_B: Tensor, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        bits = self.measure(tokens_BNK, labels_B, context)["bits_per_token"].mean()
        return bits * math.log(2), {"loss/bits_per_token": bits.detach()}

    def measure(self, tokens_BNK: Tensor, labels_B: Tensor, context: Context) -> dict[str, Tensor]:
        nats_BNK = F.cross_entropy(self(labels_B).movedim(-1, 1), tokens_BNK, reduction="none")
        return {"bits_per_token": nats_BNK.mean((1, 2)) / math.log(2)}


@dataclasses.dataclass(frozen=True)
class OneShotSampler:
    """Draws all codes at once."""

    temperature: float = 1.0

    def with_settings(self, **settings: Any) -> "OneShotSampler":
        return with_settings(self, **settings)

    def bind(self, prior: Any, runtime: Runtime, batch_size: int, dtype: torch.dtype) -> Draw:
        def program(arrays: State, images: dict[str, Tensor], scalars: dict[str, Tensor]) -> Tensor:
            logits_BNKV = apply(prior.forward, arrays, images["labels"])
            keys_B = fold_key(step_key(scalars["seed"], scalars["step"], "sample"), images["numbers"])
            uniform = uniform_rows(keys_B, logits_BNKV[0].numel()).reshape(logits_BNKV.shape)
            return sample_logits(logits_BNKV, uniform, temperature=scalars["temperature"])

        compiled = runtime.compile(program)

        def draw(arrays: State, labels_B: np.ndarray, numbers_B: np.ndarray, seed: int, given: Any = None) -> Tensor:
            images = runtime.put({"labels": labels_B, "numbers": numbers_B.astype(np.int32)})
            return compiled(arrays, images, runtime.scalars({"seed": seed, "step": 0, "temperature": self.temperature}))

        return draw


gin.register(TablePrior, module="plugin")
gin.register(OneShotSampler, module="plugin")
