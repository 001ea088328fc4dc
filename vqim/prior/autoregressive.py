"""VIM: a decoder-only transformer over raster tokens. ViT-VQGAN section 4, Table 2; MoVQ section 4.3, "auto".

    B batch, N positions, K codes a position, S = N K codes of an image, D width, L layers
    V largest vocabulary of a level, T all levels' vocabularies together
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from vqim.contracts.context import Context, Kernels
from vqim.contracts.grid import TokenGrid
from vqim.nn.attention import Cache
from vqim.nn.layers import Head, LayerNorm, check_positive
from vqim.nn.module import parameter
from vqim.nn.transformer import Stack, TransformerBlock
from vqim.prior.layout import Layout, declare_positions, join_positions
from vqim.prior.likelihood import LikelihoodPrior
from vqim.state.init import Normal

_INIT = Normal(0.02)


class AutoregressivePrior(LikelihoodPrior):
    """P(x) = prod_i P(x_i | x_1 ... x_{i-1}, class), equation (2).

    The input is a class token and all codes of an image except the last, each with a learned 2D position. Without
    classes, or for an image whose class is not told, the class token is the same for all.

    Several codes a position follow one another, channel by channel, before those of the next position. Each has its own
    learned position; all share a table and a head, as MoVQ's channels share a codebook.

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
        super().__init__(grid, num_classes, width, class_dropout_rate, _INIT)
        check_positive(width=width, num_layers=num_layers, num_heads=num_heads, hidden=hidden)
        self._layout = Layout(grid)
        self.num_steps, self.vocabulary = self._layout.num_steps, self._layout.vocabulary
        self.num_layers, self.num_heads, self.width = num_layers, num_heads, width
        self.token_table_VD = parameter((self._layout.num_rows, width), _INIT, "vocabulary", "features")
        self._position_names = declare_positions(self, grid, width, _INIT, codes_each=grid.num_channels)
        block = TransformerBlock(width, num_heads, hidden, causal=True, dropout_rate=dropout_rate, init=_INIT)
        self.blocks = Stack(block, num_layers)
        self.norm = LayerNorm(width)
        self.head = Head(width, self._layout.sizes, _INIT)

    def forward(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """Logits [B, S, V] of each code, given those before it, in the context's dtype; a label of -1 is not told."""
        codes_BSD = self._embed_codes(tokens_BNK, context)
        x_BSD = torch.cat([self.embed_class(tokens_BNK, labels_B, context), codes_BSD[:, :-1]], 1)
        x_BSD = self.norm(self.blocks(x_BSD, context), context)
        return self._layout.logits(x_BSD, self.head, context)

    def features(self, tokens_BNK: Tensor, context: Context) -> Tensor:
        """Every block's output averaged over all S codes, [L, B, D]; classes are not told. ViT-VQGAN section 4.2."""
        x_BMD = torch.cat([self.embed_class(tokens_BNK, None, context), self._embed_codes(tokens_BNK, context)], 1)
        return self.blocks.collect(x_BMD, context, lambda x_BMD: x_BMD[:, 1:].float().mean(1))

    def empty_cache(
        self, batch_size: int, dtype: torch.dtype, device: torch.device, kernels: Kernels,
    ) -> dict[str, Tensor]:
        """An empty cache of the keys and values of S positions."""
        sizes = (self.num_layers, batch_size, self.num_heads, self.num_steps, self.width // self.num_heads)
        return {name: kernels.empty_cache(sizes, dtype, device) for name in ("keys", "values")}

    def step(
        self, drawn_BS: Tensor, labels_B: Tensor | None, cache: dict[str, Tensor], step: Tensor, context: Context,
    ) -> Tensor:
        """Logits of the code in one place, float32 [B, V], given those before it; see `Stepwise.step`."""
        place = step.long()
        before = (place - 1).clamp_min(0)
        previous_B = drawn_BS.index_select(1, before.reshape(1))[:, 0]
        class_B1D = self.embed_class(previous_B, labels_B, context)
        position_D = F.embedding(before, self._positions())
        token_BD = F.embedding(previous_B + self._layout.first_row(before), self.token_table_VD)
        x_B1D = torch.where(place == 0, class_B1D, (token_BD + position_D)[:, None].to(context.dtype))
        x_B1D = self.blocks.step(x_B1D, Cache(cache["keys"], cache["values"]), place, context, context.reach)
        return self._layout.logits_at(self.norm(x_B1D, context), self.head, place, context).float()

    def _positions(self) -> Tensor:
        """The learned vectors of all places, [S, D]."""
        return join_positions(self, self._position_names)

    def _embed_codes(self, tokens_BNK: Tensor, context: Context) -> Tensor:
        places_S = torch.arange(self.num_steps, device=tokens_BNK.device)
        rows_BS = tokens_BNK.flatten(1).long() + self._layout.first_row(places_S)
        return (F.embedding(rows_BS, self.token_table_VD) + self._positions()).to(context.dtype)
