"""Multi-head self-attention, over a whole sequence or one position at a time with a cache.

    B batch, T queries, S keys, N heads, H head dimension, D width, E = N * H
"""
import dataclasses

from einops import rearrange
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.nn.layers import Dense, dropout
from vqim.state.init import Constant, Init


@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the positions seen so far, from `Kernels.empty_cache` (inside a block, of one layer)."""

    keys: Tensor
    values: Tensor


class SelfAttention(nn.Module):
    """softmax(q k^T / sqrt(H)) v with a projection before and after.

    Dropout acts on attention's outputs, before the output projection (ViT-VQGAN section 4). It never acts on the
    probabilities, which fused kernels do not materialise.
    """

    def __init__(
        self, width: int, num_heads: int, *, causal: bool, dropout_rate: float = 0.0, init: Init | None = None,
    ):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width must be a multiple of num_heads, got width {width} and num_heads {num_heads}")
        self.num_heads, self.causal, self.dropout_rate = num_heads, causal, dropout_rate
        self.query = Dense(width, width, init)
        self.key = Dense(width, width, init)
        self.value = Dense(width, width, init)
        # Zero: see `TransformerBlock`.
        self.out = Dense(width, width, Constant(0.0))

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """Attention over the whole sequence: [B, T, D] to [B, T, D]."""
        q_BNTH, k_BNTH, v_BNTH = self._project(x_BTD, context)
        out_BNTH = context.kernels.attention(q_BNTH, k_BNTH, v_BNTH, causal=self.causal)
        out_BTE = dropout(rearrange(out_BNTH, "b n t h -> b t (n h)"), self.dropout_rate, context, "attention")
        return self.out(out_BTE, context)

    def step(
        self, x_B1D: Tensor, cache: Cache, position: Tensor, context: Context,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Attention from one position to itself and all positions before it.

        Args:
          x_B1D: the input at `position`.
          cache: of the first positions, at least up to `position`, whose entries may be written.
          position: int32 or int64 scalar tensor, so that one compiled program serves every position.

        Returns:
          [B, 1, D], and the key and value of this position, [B, 1, D] each; None where the cache has them now.
        """
        q_B1D, k_B1D, v_B1D = (dense(x_B1D, context) for dense in (self.query, self.key, self.value))
        out_B1D, unwritten = context.kernels.cached_attention(
            q_B1D, k_B1D, v_B1D, cache.keys, cache.values, position, self.num_heads)
        return self.out(out_B1D, context), unwritten

    def _project(self, x_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            rearrange(dense(x_BTD, context), "b t (n h) -> b n t h", n=self.num_heads)
            for dense in (self.query, self.key, self.value))
        return q, k, v
