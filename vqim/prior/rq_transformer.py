"""The RQ-transformer: a spatial transformer over positions, a depth transformer over the codes of each. Lee et al.
(2022), "Autoregressive Image Generation using Residual Quantization", section 3.2.

    B batch, N positions, K codes a position, S = N K codes of an image, Z code dimension, D width
    V largest vocabulary of a level, T all levels' vocabularies together, L spatial layers
"""
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vqim.contracts.context import Context, Kernels
from vqim.contracts.grid import TokenGrid
from vqim.nn.attention import Cache
from vqim.nn.layers import Dense, Head, LayerNorm, check_positive
from vqim.nn.module import parameter
from vqim.nn.transformer import Stack, TransformerBlock
from vqim.prior.layout import Layout, declare_positions, join_positions
from vqim.prior.likelihood import LikelihoodPrior
from vqim.state.init import Normal

_INIT = Normal(0.02)


class RQTransformer(LikelihoodPrior):
    """P(x) = prod over positions n and codes k of P(x_nk | x_n1 ... x_n(k-1), all codes of earlier positions, class).

    The spatial transformer sees one vector a position, the sum of its codes' vectors (a class token before the first),
    and gives each position what is known of those before it. From there the depth transformer goes through the
    position's own codes: its first input is the spatial transformer's output, the others are sums of the codes so far.
    Attention is so over N positions and over K codes, never over N K.

    The paper sums vectors of the tokenizer's codebook. A prior knows only its tokens, so each channel has a table of
    learned vectors here, of the same width; the two projections to the transformers' width are the published program's.
    Tables of their own tell apart which channel has which code, where channels are not residuals of one another, as
    MoVQ's are not. The targets are the codes themselves; the paper's soft targets would need the tokenizer's distances.

    Args:
      grid: the token grid of the tokenizer whose tokens are modelled; at least two codes a position.
      num_classes: the number of classes; 0 models images without classes.
      width: the width of both transformers.
      num_layers: the number of spatial blocks.
      num_depth_layers: the number of depth blocks.
      num_heads: the number of attention heads in both.
      hidden: the hidden width of the feed-forward in both.
      code_dim: the width of the codes' vectors; 256, that of the codebook, in the paper.
      dropout_rate: the dropout rate on residual branches, activations and attention outputs.
      class_dropout_rate: the share of training images whose class is not told, so that one model also works without
        classes.
    """

    def __init__(
        self, grid: TokenGrid, num_classes: int, width: int, num_layers: int, num_depth_layers: int, num_heads: int,
        hidden: int, code_dim: int = 256, dropout_rate: float = 0.1, class_dropout_rate: float = 0.0,
    ):
        super().__init__(grid, num_classes, width, class_dropout_rate, _INIT)
        if grid.num_channels < 2:
            raise ValueError("RQTransformer goes through several codes at each position, this tokenizer gives one; "
                             "AutoregressivePrior models such tokens")
        check_positive(width=width, num_layers=num_layers, num_depth_layers=num_depth_layers, num_heads=num_heads,
                       hidden=hidden, code_dim=code_dim)
        self._layout = Layout(grid)
        self.num_steps, self.vocabulary = self._layout.num_steps, self._layout.vocabulary
        self.num_layers, self.num_depth_layers = num_layers, num_depth_layers
        self.num_heads, self.width = num_heads, width
        # Vectors of length 1, so that a projected code is as large as a position.
        self.code_tables_TZ = parameter((grid.num_channels * self._layout.num_rows, code_dim), Normal(code_dim**-0.5),
                                        "vocabulary", "features")
        self.spatial_embed, self.depth_embed = Dense(code_dim, width, _INIT), Dense(code_dim, width, _INIT)
        self._position_names = declare_positions(self, grid, width, _INIT)
        self.depths_KD = parameter((grid.num_channels, width), _INIT, "vocabulary", "features")
        spatial, depth = (TransformerBlock(
            width, num_heads, hidden, causal=True, dropout_rate=dropout_rate, init=_INIT) for _ in range(2))
        self.spatial, self.depth = Stack(spatial, num_layers), Stack(depth, num_depth_layers)
        self.norm = LayerNorm(width)
        self.head = Head(width, self._layout.sizes, _INIT)

    def forward(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """Logits [B, S, V] of each code, given those before it, in the context's dtype; a label of -1 is not told."""
        codes_BNKZ = self._embed_codes(tokens_BNK)
        spatial_BND = torch.cat([self.embed_class(tokens_BNK, labels_B, context),
                                 self._spatial_inputs(codes_BNKZ, context)[:, :-1]], 1)
        spatial_BND = self.spatial(spatial_BND, context.fold("spatial"))
        before_BNkD = self.depth_embed(codes_BNKZ.cumsum(2)[:, :, :-1], context)
        x_BNKD = torch.cat([spatial_BND[:, :, None], before_BNkD], 2) + self.depths_KD.to(context.dtype)
        x_PKD = self.depth(rearrange(x_BNKD, "b n k d -> (b n) k d"), context.fold("depth"))
        x_BSD = self.norm(rearrange(x_PKD, "(b n) k d -> b (n k) d", b=len(tokens_BNK)), context)
        return self._layout.logits(x_BSD, self.head, context)

    def features(self, tokens_BNK: Tensor, context: Context) -> Tensor:
        """Every spatial block's output averaged over all N positions, [L, B, D]; classes are not told."""
        inputs_BND = self._spatial_inputs(self._embed_codes(tokens_BNK), context)
        x_BMD = torch.cat([self.embed_class(tokens_BNK, None, context), inputs_BND], 1)
        return self.spatial.collect(x_BMD, context, lambda x_BMD: x_BMD[:, 1:].float().mean(1))

    def empty_cache(
        self, batch_size: int, dtype: torch.dtype, device: torch.device, kernels: Kernels,
    ) -> dict[str, Tensor]:
        """Empty caches of keys and values, of all N positions and of one position's K codes."""
        sizes = {"spatial": (self.num_layers, self.grid.num_positions),
                 "depth": (self.num_depth_layers, self.grid.num_channels)}
        return {f"{name}_{which}": kernels.empty_cache(
                    (layers, batch_size, self.num_heads, length, self.width // self.num_heads), dtype, device)
                for name, (layers, length) in sizes.items() for which in ("keys", "values")}

    def step(
        self, drawn_BS: Tensor, labels_B: Tensor | None, cache: dict[str, Tensor], step: Tensor, context: Context,
    ) -> Tensor:
        """Logits of the code in one place, float32 [B, V], given those before it; see `Stepwise.step`.

        The spatial transformer repeats its step for each code of a position, with the same input, and so writes the
        same entries again: a program that serves every step cannot leave it out for some. It is then K times its work.
        The depth cache is that of one position: what the one before it wrote lies after the first code, and is not
        seen.
        """
        num_codes = self.grid.num_channels
        place = step.long()
        position, channel = place // num_codes, place % num_codes
        before = (position - 1).clamp_min(0)
        both_2 = torch.stack([before, position])
        known_BNK = rearrange(drawn_BS, "b (n k) -> b n k", k=num_codes)
        codes_B2KZ = self._embed_codes(known_BNK.index_select(1, both_2), both_2)
        class_B1D = self.embed_class(drawn_BS, labels_B, context)
        input_B1D = self._spatial_inputs(codes_B2KZ[:, :1], context, before.reshape(1))
        x_B1D = torch.where(position == 0, class_B1D, input_B1D)
        reach = None if context.reach is None else -(-context.reach // num_codes)
        x_B1D = self._advance(self.spatial, x_B1D, cache, "spatial", position, context, reach)

        is_before_K1 = (torch.arange(num_codes, device=drawn_BS.device) < channel)[:, None]
        sum_BZ = torch.where(is_before_K1, codes_B2KZ[:, 1], 0.0).sum(1)
        depth_D = F.embedding(channel, self.depths_KD).to(context.dtype)
        x_B1D = torch.where(channel == 0, x_B1D, self.depth_embed(sum_BZ, context)[:, None]) + depth_D
        x_B1D = self._advance(self.depth, x_B1D, cache, "depth", channel, context)
        return self._layout.logits_at(self.norm(x_B1D, context), self.head, place, context).float()

    def _advance(
        self, stack: Stack, x_B1D: Tensor, cache: dict[str, Tensor], name: str, place: Tensor, context: Context,
        reach: int | None = None,
    ) -> Tensor:
        """One step of a transformer, with its part of the cache."""
        return stack.step(x_B1D, Cache(cache[f"{name}_keys"], cache[f"{name}_values"]), place, context, reach)

    def _embed_codes(self, tokens_BNK: Tensor, positions_N: Tensor | None = None) -> Tensor:
        """Each code's vector, float32 [B, N, K, Z], at these positions, or at all of them."""
        num_codes, device = self.grid.num_channels, tokens_BNK.device
        if positions_N is None:
            positions_N = torch.arange(self.grid.num_positions, device=device)
        level_rows_N1 = self._layout.first_row(positions_N * num_codes)[:, None]
        table_rows_K = torch.arange(num_codes, device=device) * self._layout.num_rows
        return F.embedding(tokens_BNK.long() + level_rows_N1 + table_rows_K, self.code_tables_TZ)

    def _spatial_inputs(self, codes_BNKZ: Tensor, context: Context, positions_N: Tensor | None = None) -> Tensor:
        """What the spatial transformer sees of positions, [B, N, D]: of these, or of all of them."""
        positions_ND = join_positions(self, self._position_names)
        if positions_N is not None:
            positions_ND = positions_ND.index_select(0, positions_N)
        return self.spatial_embed(codes_BNKZ.sum(2), context) + positions_ND.to(context.dtype)
