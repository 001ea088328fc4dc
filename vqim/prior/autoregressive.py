"""VIM: a decoder-only transformer over raster tokens. ViT-VQGAN section 4, Table 2.

    B batch, N tokens of an image, n tokens in one level, K = 1 codes at each position, D width, L layers
    V largest vocabulary of a level, T all levels' vocabularies together
"""
import itertools
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.grid import TokenGrid
from vqim.nn.attention import Cache
from vqim.nn.layers import Dense, LayerNorm, check_positive, check_rate
from vqim.nn.module import parameter
from vqim.nn.transformer import Stack, TransformerBlock
from vqim.state.init import Normal

NATS_PER_BIT = math.log(2)

_INIT = Normal(0.02)


class AutoregressivePrior(nn.Module):
    """P(x) = prod_i P(x_i | x_1 ... x_{i-1}, class), equation (2).

    The input is a class token and all image tokens except the last, each with a learned 2D position. Without classes,
    or for an image whose class is not told, the class token is the same for all.

    Several levels of tokens follow one another, each with its own positions. Their vocabularies share no codes: each
    level has its own rows in the token table and its own columns in the head. Where vocabularies differ in size, the
    logits of codes that a level does not have are -inf.

    Args:
      grid: the token grid of the tokenizer whose tokens are modelled.
      num_classes: the number of classes; 0 models images without classes.
      width: the transformer's width, 'Model Dim' in Table 2.
      num_layers: the number of transformer blocks, '#Blocks' in Table 2.
      num_heads: the number of attention heads, '#Heads' in Table 2.
      hidden: the hidden width of the feed-forward, 'Hidden Dim' in Table 2.
      dropout_rate: the dropout rate on residual branches, activations and attention outputs; 0.1 in the paper.
      class_dropout_rate: the share of training images whose class is not told, so that one model also works without
        classes, mainly for its features; 0 in the paper.
    """

    def __init__(
        self, grid: TokenGrid, num_classes: int, width: int, num_layers: int, num_heads: int, hidden: int,
        dropout_rate: float = 0.1, class_dropout_rate: float = 0.0,
    ):
        super().__init__()
        if grid.num_channels != 1:
            raise ValueError(
                f"AutoregressivePrior models one code a position, this tokenizer gives {grid.num_channels}")
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {num_classes}")
        check_positive(width=width, num_layers=num_layers, num_heads=num_heads, hidden=hidden)
        check_rate("class_dropout_rate", class_dropout_rate)
        self.grid, self.num_classes, self.class_dropout_rate = grid, num_classes, class_dropout_rate
        sizes = [level.vocabulary for level in grid.levels]
        self.num_steps, self.vocabulary = grid.num_positions, max(sizes)
        # Where levels begin, and the last one ends: positions in the sequence, rows in the table.
        self._starts = list(itertools.accumulate((level.num_positions for level in grid.levels), initial=0))
        self._rows = list(itertools.accumulate(sizes, initial=0))
        self.num_layers, self.num_heads, self.width = num_layers, num_heads, width
        self.class_table_CD = parameter((num_classes + 1, width), _INIT, "vocabulary", "features")
        self.token_table_VD = parameter((sum(sizes), width), _INIT, "vocabulary", "features")
        self._position_names = ["positions_hwD", *(f"positions_{i}_hwD" for i in range(1, len(sizes)))]
        for name, level in zip(self._position_names, grid.levels, strict=True):
            setattr(self, name, parameter((level.height, level.width, width), _INIT, "height", "width", "features"))
        block = TransformerBlock(width, num_heads, hidden, causal=True, dropout_rate=dropout_rate, init=_INIT)
        self.blocks = Stack(block, num_layers)
        self.norm = LayerNorm(width)
        self.head = Dense(width, sum(sizes), _INIT)

    def forward(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """Logits [B, N, V] of each token, given those before it, in the context's dtype; a label of -1 is not told."""
        x_BND = torch.cat([self._embed_class(tokens_BNK, labels_B, context),
                           self._embed_tokens(tokens_BNK, context)[:, :-1]], 1)
        x_BND = self.norm(self.blocks(x_BND, context), context)
        return torch.cat([self._logits(x_BND[:, start:end], level, context)
                          for level, (start, end) in enumerate(itertools.pairwise(self._starts))], 1)

    def loss(
        self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean of -log P over tokens, in nats, and metrics, where it is also in bits."""
        loss = self.token_losses(tokens_BNK, labels_B, context).mean()
        return loss, {"loss/bits_per_token": loss.detach() / NATS_PER_BIT}

    def measure(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> dict[str, Tensor]:
        """Each image's mean bits per token, and the share of its tokens that are the likeliest ones."""
        logits_BNV = self(tokens_BNK, labels_B, context).float()
        tokens_BN = tokens_BNK[..., 0]
        nats_BN = F.cross_entropy(rearrange(logits_BNV, "b n v -> b v n"), tokens_BN, reduction="none")
        return {"bits_per_token": nats_BN.mean(1) / NATS_PER_BIT,
                "token_accuracy": (logits_BNV.argmax(-1) == tokens_BN).float().mean(1)}

    def expected(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """The likeliest code at each position, given the true ones before it: int64 [B, N, 1]."""
        return self(tokens_BNK, labels_B, context).float().argmax(-1)[..., None]

    def token_losses(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """-log P of each token, float32 [B, N], in nats.

        In this form, float32 logits exist only inside reductions. F.cross_entropy keeps another array for the backward
        pass. With 8 x 1024 tokens and 8192 codes, a TPU needs 257 MiB for it and the bfloat16 logits, but 128 MiB in
        this form (TPU compiler, v4, libtpu 0.0.23).
        """
        logits_BNV = self(tokens_BNK, labels_B, context).float()
        codes_V = torch.arange(self.vocabulary, device=tokens_BNK.device)
        here_BNV = codes_V == tokens_BNK[..., :1]
        return logits_BNV.logsumexp(-1) - torch.where(here_BNV, logits_BNV, 0.0).sum(-1)

    def features(self, tokens_BNK: Tensor, context: Context) -> Tensor:
        """Every block's output averaged over all N token positions, [L, B, D]; classes are not told. Section 4.2."""
        x_BMD = torch.cat([self._embed_class(tokens_BNK, None, context), self._embed_tokens(tokens_BNK, context)], 1)
        return self.blocks.collect(x_BMD, context, lambda x_BMD: x_BMD[:, 1:].float().mean(1))

    def empty_cache(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """An empty cache of keys and values, [L, B, heads, N, width of a head]."""
        shape = (self.num_layers, batch_size, self.num_heads, self.num_steps, self.width // self.num_heads)
        return {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("keys", "values")}

    def step(
        self, drawn_BS: Tensor, labels_B: Tensor | None, cache: dict[str, Tensor], step: Tensor, context: Context,
    ) -> Tensor:
        """Logits of the token at one position, float32 [B, V], given those before it; see `Stepwise.step`."""
        position = step.long()
        before = (position - 1).clamp_min(0)
        previous_B = drawn_BS.index_select(1, before.reshape(1))[:, 0]
        class_B1D = self._embed_class(previous_B, labels_B, context)
        position_D = F.embedding(before, self._positions())
        token_BD = F.embedding(previous_B + self._first_row(before), self.token_table_VD)
        x_B1D = torch.where(position == 0, class_B1D, (token_BD + position_D)[:, None].to(context.dtype))
        x_B1D, new = self.blocks.step(x_B1D, Cache(cache["keys"], cache["values"]), position, context)
        here_N1 = (torch.arange(self.num_steps, device=x_B1D.device) == position)[:, None]
        for name, entry in (("keys", new.keys), ("values", new.values)):
            cache[name].copy_(torch.where(here_N1, entry, cache[name]))
        x_B1D = self.norm(x_B1D, context)
        logits_B1V = self._logits(x_B1D, 0, context)
        for level, start in enumerate(self._starts[1:-1], 1):
            logits_B1V = torch.where(position >= start, self._logits(x_B1D, level, context), logits_B1V)
        return logits_B1V[:, 0].float()

    def _logits(self, x_BnD: Tensor, level: int, context: Context) -> Tensor:
        """Logits [B, n, V] of one level's codes; -inf for codes that it does not have."""
        columns = slice(self._rows[level], self._rows[level + 1])
        kernel_DV, bias_V = (array[..., columns] for array in (self.head.kernel_IO, self.head.bias_O))
        logits_BnV = context.kernels.linear(x_BnD, kernel_DV, bias_V)
        missing = self.vocabulary - logits_BnV.shape[-1]
        return F.pad(logits_BnV, (0, missing), value=-torch.inf) if missing else logits_BnV

    def _positions(self) -> Tensor:
        """The learned vectors of all positions, [N, D]."""
        return torch.cat([rearrange(getattr(self, name), "h w d -> (h w) d") for name in self._position_names])

    def _first_row(self, positions: Tensor) -> Tensor:
        """The first row in the token table for the level of each position, int64 of any shape."""
        rows = torch.zeros_like(positions, dtype=torch.int64)
        for start, row in zip(self._starts[1:-1], self._rows[1:-1], strict=True):
            rows = torch.where(positions >= start, row, rows)
        return rows

    def _embed_tokens(self, tokens_BNK: Tensor, context: Context) -> Tensor:
        positions_N = torch.arange(self.num_steps, device=tokens_BNK.device)
        tokens_BND = F.embedding(tokens_BNK[..., 0].long() + self._first_row(positions_N), self.token_table_VD)
        return (tokens_BND + self._positions()).to(context.dtype)

    def _embed_class(self, like_B: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """The class tokens, [B, 1, D]."""
        if labels_B is None or self.num_classes == 0:
            labels_B = torch.full_like(like_B.reshape(like_B.shape[0], -1)[:, 0], self.num_classes, dtype=torch.int64)
        labels_B = labels_B.long()
        told_B = labels_B >= 0
        key = context.fold("class").key
        if key is not None and self.class_dropout_rate > 0:
            told_B = told_B & context.kernels.keep_mask(key, self.class_dropout_rate, labels_B.shape, labels_B.device)
        rows_B = torch.where(told_B, labels_B, self.num_classes)
        return F.embedding(rows_B, self.class_table_CD)[:, None].to(context.dtype)
