"""VIM: a decoder-only transformer over raster tokens. ViT-VQGAN section 4, Table 2.

    B batch, N tokens of an image, K = 1 codes a position, D width, V vocabulary, L layers
"""
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqim.nn.attention import Cache
from vqim.nn.context import Context
from vqim.nn.layers import Dense, LayerNorm, check_positive, check_rate
from vqim.nn.module import parameter
from vqim.nn.transformer import Stack, TransformerBlock
from vqim.state.init import Normal
from vqim.tokenizer.grid import TokenGrid

_INIT = Normal(0.02)


class AutoregressivePrior(nn.Module):
    """P(x) = prod_i P(x_i | x_1 ... x_{i-1}, class), equation (2).

    The input is a class token and all image tokens but the last; each token carries a learned 2D position. Without
    classes, or for an image whose class is not told, the class token is the same for all.

    Args:
      grid: of the tokenizer whose tokens are modelled.
      num_classes: of the labels; 0 models images without them.
      width, num_layers, num_heads, hidden: Table 2's 'Model Dim', '#Blocks', '#Heads', 'Hidden Dim'.
      dropout_rate: on residual branches, activations and attention outputs; 0.1 in the paper.
      class_dropout_rate: share of training images whose class is not told, so that one model also serves
        without classes (its features, above all); 0 in the paper.
    """

    def __init__(
        self, grid: TokenGrid, num_classes: int, width: int, num_layers: int, num_heads: int, hidden: int,
        dropout_rate: float = 0.1, class_dropout_rate: float = 0.0,
    ):
        super().__init__()
        level = grid.single_level(type(self).__name__)
        if level.channels != 1:
            raise ValueError(f"AutoregressivePrior models one code a position, this tokenizer gives {level.channels}")
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {num_classes}")
        check_positive(width=width, num_layers=num_layers, num_heads=num_heads, hidden=hidden)
        check_rate("class_dropout_rate", class_dropout_rate)
        self.grid, self.num_classes, self.class_dropout_rate = grid, num_classes, class_dropout_rate
        self.num_tokens, self.vocabulary = grid.num_positions, level.vocabulary
        self.num_layers, self.num_heads, self.width = num_layers, num_heads, width
        self.class_table_CD = parameter((num_classes + 1, width), _INIT, "vocabulary", "features")
        self.token_table_VD = parameter((level.vocabulary, width), _INIT, "vocabulary", "features")
        self.positions_hwD = parameter((level.height, level.width, width), _INIT, "height", "width", "features")
        block = TransformerBlock(width, num_heads, hidden, causal=True, dropout_rate=dropout_rate, init=_INIT)
        self.blocks = Stack(block, num_layers)
        self.norm = LayerNorm(width)
        self.head = Dense(width, level.vocabulary, _INIT)

    def forward(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """Logits [B, N, V] of each token given those before it, in the context's dtype; labels -1 are not told."""
        x_BND = torch.cat([self._embed_class(tokens_BNK, labels_B, context),
                           self._embed_tokens(tokens_BNK, context)[:, :-1]], 1)
        return self.head(self.norm(self.blocks(x_BND, context), context), context)

    def loss(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """Mean of -log P over tokens, in nats."""
        return self.token_losses(tokens_BNK, labels_B, context).mean()

    def token_losses(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """-log P of each token, float32 [B, N], in nats."""
        logits_BNV = self(tokens_BNK, labels_B, context).float()
        return F.cross_entropy(rearrange(logits_BNV, "b n v -> b v n"), tokens_BNK[..., 0].long(), reduction="none")

    def features(self, tokens_BNK: Tensor, context: Context) -> Tensor:
        """Every block's output averaged over all N token positions, [L, B, D]; classes are not told. Section 4.2."""
        x_BMD = torch.cat([self._embed_class(tokens_BNK, None, context), self._embed_tokens(tokens_BNK, context)], 1)
        return self.blocks.collect(x_BMD, context, lambda x_BMD: x_BMD[:, 1:].float().mean(1))

    def empty_cache(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Cache:
        """Keys and values of no position yet."""
        shape = (self.num_layers, batch_size, self.num_heads, self.num_tokens, self.width // self.num_heads)
        return Cache(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))

    def step(
        self, previous_B: Tensor, labels_B: Tensor | None, cache: Cache, position: Tensor, context: Context,
    ) -> tuple[Tensor, Cache]:
        """Logits of the token at one position, given those before it.

        Args:
          previous_B: the token at `position - 1`; ignored at position 0, where the class token is the input.
          labels_B: classes, -1 or None where not told.
          cache: of the positions before.
          position: int64 scalar tensor.

        Returns:
          Float32 logits [B, V], and the new entries of the cache, [L, B, N, 1, H] each.
        """
        class_B1D = self._embed_class(previous_B, labels_B, context)
        flat_ND = rearrange(self.positions_hwD, "h w d -> (h w) d")
        position_D = F.embedding((position - 1).clamp_min(0), flat_ND)
        token_B1D = (F.embedding(previous_B, self.token_table_VD) + position_D)[:, None].to(context.dtype)
        x_B1D = torch.where(position == 0, class_B1D, token_B1D)
        x_B1D, new = self.blocks.step(x_B1D, cache, position, context)
        return self.head(self.norm(x_B1D, context), context)[:, 0].float(), new

    def _embed_tokens(self, tokens_BNK: Tensor, context: Context) -> Tensor:
        tokens_BND = F.embedding(tokens_BNK[..., 0].long(), self.token_table_VD)
        return (tokens_BND + rearrange(self.positions_hwD, "h w d -> (h w) d")).to(context.dtype)

    def _embed_class(self, like_B: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """[B, 1, D]."""
        if labels_B is None or self.num_classes == 0:
            labels_B = torch.full_like(like_B.reshape(like_B.shape[0], -1)[:, 0], self.num_classes, dtype=torch.int64)
        labels_B = labels_B.long()
        told_B = labels_B >= 0
        key = context.fold("class").key
        if key is not None and self.class_dropout_rate > 0:
            told_B = told_B & context.kernels.keep_mask(key, self.class_dropout_rate, labels_B.shape, labels_B.device)
        rows_B = torch.where(told_B, labels_B, self.num_classes)
        return F.embedding(rows_B, self.class_table_CD)[:, None].to(context.dtype)
