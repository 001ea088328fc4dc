"""A masked prior: a bidirectional transformer that predicts the masked codes of an image from the others.

MaskGIT (Chang et al., 2022), with several codes a position as in MoVQ section 3.2.

    B batch, N positions of an image, n positions of one level, K codes a position, S = N K places
    D width, Z = D / K width of a code's embedding, V vocabulary, L layers
"""
import dataclasses
import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.grid import Level, TokenGrid
from vqim.nn.layers import Dense, LayerNorm, check_positive, check_rate
from vqim.nn.module import parameter
from vqim.nn.transformer import Stack, TransformerBlock
from vqim.prior.layout import class_rows, declare_positions, join_positions
from vqim.prior.likelihood import NATS_PER_BIT
from vqim.prior.masking import MaskSchedule, check_schedule, choose_masked, mask_ratio, ranks
from vqim.state.init import Normal
from vqim.state.random import fold_key, mix_bits, uniform_rows

_INIT = Normal(0.02)


@dataclasses.dataclass(frozen=True)
class _Part:
    """One level of the grid, with its part of a sequence, of the table of codes, and of the head's columns."""

    level: Level
    positions: slice
    rows: slice
    columns: slice


class MaskedPrior(nn.Module):
    """P(x_i | codes that are not masked, class) of every masked code x_i at once, MoVQ equation (6).

    The input is a class token, and one token for each position: its K codes' embeddings, each of width D / K, one after
    another, with a vector for 'masked' in place of a masked code; and the position's learned vector. The output is K
    predictions for each position. Without classes, or for an image whose class is not told, the class token is the same
    for all.

    Several levels of tokens follow one another, as in `AutoregressivePrior`: each has its own positions, its own rows
    in the table of codes and its own columns in the head. Where vocabularies differ in size, the logits of codes that
    a level does not have are -inf.

    Args:
      grid: the token grid of the tokenizer whose tokens are modelled.
      num_classes: the number of classes; 0 models images without classes.
      width: the transformer's width, a multiple of the number of codes a position.
      num_layers: the number of transformer blocks.
      num_heads: the number of attention heads.
      hidden: the hidden width of the feed-forward.
      dropout_rate: the dropout rate on residual branches, activations and attention outputs.
      class_dropout_rate: the share of training images whose class is not told; guidance needs it above 0.
      schedule: gamma in training: the share of an image's codes that is masked is gamma(r), with r from U[0, 1).
      label_smoothing: the share of the target that is spread evenly over the vocabulary; MaskGIT's released
        configuration has 0.1.
    """

    def __init__(
        self, grid: TokenGrid, num_classes: int, width: int, num_layers: int, num_heads: int, hidden: int,
        dropout_rate: float = 0.1, class_dropout_rate: float = 0.0, schedule: MaskSchedule = "cosine",
        label_smoothing: float = 0.1,
    ):
        super().__init__()
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {num_classes}")
        check_positive(width=width, num_layers=num_layers, num_heads=num_heads, hidden=hidden)
        check_rate("class_dropout_rate", class_dropout_rate)
        check_rate("label_smoothing", label_smoothing)
        check_schedule("schedule", schedule)
        channels = grid.num_channels
        if width % channels:
            raise ValueError(f"width must be a multiple of the tokenizer's {channels} codes a position, got {width}")
        self.grid, self.num_classes, self.class_dropout_rate = grid, num_classes, class_dropout_rate
        self.schedule, self.label_smoothing = schedule, label_smoothing
        self.num_layers, self.width = num_layers, width
        self.vocabulary = max(level.vocabulary for level in grid.levels)
        self._parts = list(_parts(grid))
        num_codes = self._parts[-1].rows.stop
        self.class_table_CD = parameter((num_classes + 1, width), _INIT, "vocabulary", "features")
        self.code_table_VZ = parameter((num_codes, width // channels), _INIT, "vocabulary", "features")
        self.mask_Z = parameter((width // channels,), _INIT, "features")
        self._position_names = declare_positions(self, grid, width, _INIT)
        block = TransformerBlock(width, num_heads, hidden, causal=False, dropout_rate=dropout_rate, init=_INIT)
        self.blocks = Stack(block, num_layers)
        self.norm = LayerNorm(width)
        self.head = Dense(width, channels * num_codes, _INIT)

    def logits(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """Logits of every code, given those that are not masked; see `Filling.logits`."""
        logits = []
        for logits_BnKV in self._level_logits(tokens_BNK, labels_B, context):
            missing = self.vocabulary - logits_BnKV.shape[-1]
            logits.append(F.pad(logits_BnKV, (0, missing), value=-torch.inf) if missing else logits_BnKV)
        return torch.cat(logits, 1).float()

    def loss(
        self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over all masked codes of a (micro-)batch of -log P, with label smoothing, in nats.

        Micro-batches count alike, however many of their codes are masked.
        The metric has no smoothing and is in bits. It is no likelihood: it depends on how much is masked.
        """
        masked_BNK = self._draw_masks(tokens_BNK, context)
        nats_BNK, even_BNK = self._losses(tokens_BNK, masked_BNK, labels_B, context)
        smoothed_BNK = (1 - self.label_smoothing) * nats_BNK + self.label_smoothing * even_BNK
        loss, nats = (torch.where(masked_BNK, losses_BNK, 0.0).sum() / masked_BNK.sum()
                      for losses_BNK in (smoothed_BNK, nats_BNK))
        return loss, {"loss/bits_per_masked_token": nats.detach() / NATS_PER_BIT}

    def measure(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> dict[str, Tensor]:
        """Each image's mean bits per masked token, and the share of these that are the likeliest ones.

        What is masked depends on the image's tokens alone, whatever its batch and the step. This is a validation loss,
        no likelihood, so its name is not 'bits_per_token'.
        """
        masked_BNK = self._fixed_masks(tokens_BNK)
        logits_BNKV = self.logits(torch.where(masked_BNK, -1, tokens_BNK), labels_B, context)
        nats_BNK = F.cross_entropy(rearrange(logits_BNKV, "b n k v -> b v n k"), tokens_BNK, reduction="none")
        right_BNK = (logits_BNKV.argmax(-1) == tokens_BNK).float()
        bits_B, accuracy_B = (torch.where(masked_BNK, values_BNK, 0.0).sum((1, 2)) / masked_BNK.sum((1, 2))
                              for values_BNK in (nats_BNK / NATS_PER_BIT, right_BNK))
        return {"bits_per_masked_token": bits_B, "masked_token_accuracy": accuracy_B}

    def expected(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """The likeliest codes of one half of an image given the true other half, for both halves: int64 [B, N, K].

        SeQ-GAN section 3.2 shows what a prior expects at each place, given true ones, which a causal prior tells in one
        pass: it sees half of the other codes on the average. Here as many are seen: the places fall into two halves,
        drawn once for all images over positions and channels, and each half is predicted from the other.
        """
        grid, device = self.grid, tokens_BNK.device
        uniform_1S = uniform_rows(torch.zeros(1, dtype=torch.int32, device=device), tokens_BNK[0].numel())
        half_S = (ranks(uniform_1S) < uniform_1S.shape[1] // 2)[0]
        half_NK = rearrange(half_S, "(n k) -> n k", k=grid.num_channels)
        first_BNK, second_BNK = (
            self.logits(torch.where(masked_NK, -1, tokens_BNK), labels_B, context).argmax(-1)
            for masked_NK in (half_NK, ~half_NK))
        return torch.where(half_NK, first_BNK, second_BNK)

    def features(self, tokens_BNK: Tensor, context: Context) -> Tensor:
        """Every block's output averaged over all N positions, with nothing masked, [L, B, D]; classes are not told."""
        x_BMD = self._embed(tokens_BNK, None, context)
        return self.blocks.collect(x_BMD, context, lambda x_BMD: x_BMD[:, 1:].float().mean(1))

    def _losses(
        self, tokens_BNK: Tensor, masked_BNK: Tensor, labels_B: Tensor | None, context: Context,
    ) -> tuple[Tensor, Tensor]:
        """-log P of each code, and the mean of -log P over its vocabulary, float32 [B, N, K], in nats.

        As in `XlaKernels.cross_entropy`, float32 logits exist only inside reductions.
        """
        nats, even = [], []
        levels = self._level_logits(torch.where(masked_BNK, -1, tokens_BNK), labels_B, context)
        for part, logits_BnKV in zip(self._parts, levels, strict=True):
            nats.append(context.kernels.cross_entropy(logits_BnKV, tokens_BNK[:, part.positions]))
            even.append(logits_BnKV.float().logsumexp(-1) - logits_BnKV.float().mean(-1))
        return torch.cat(nats, 1), torch.cat(even, 1)

    def _level_logits(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Iterator[Tensor]:
        """Each level's logits [B, n, K, V] in the context's dtype; tokens of -1 are masked."""
        x_BND = self.norm(self.blocks(self._embed(tokens_BNK, labels_B, context), context), context)[:, 1:]
        for part in self._parts:
            kernel_DF, bias_F = (array[..., part.columns] for array in (self.head.kernel_IO, self.head.bias_O))
            logits_BnF = context.kernels.linear(x_BND[:, part.positions], kernel_DF, bias_F)
            yield rearrange(logits_BnF, "b n (k v) -> b n k v", k=self.grid.num_channels)

    def _embed(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """The class token and the positions' tokens, [B, 1 + N, D]."""
        rows_B = class_rows(labels_B, len(tokens_BNK), self.num_classes, self.class_dropout_rate, context,
                            tokens_BNK.device)
        codes = [self._embed_codes(tokens_BNK[:, part.positions].long(), part) for part in self._parts]
        x_BND = torch.cat(codes, 1) + join_positions(self, self._position_names)
        return torch.cat([F.embedding(rows_B, self.class_table_CD)[:, None], x_BND], 1).to(context.dtype)

    def _embed_codes(self, tokens_BnK: Tensor, part: _Part) -> Tensor:
        """One level's codes, those of a position side by side: [B, n, D]."""
        codes_BnKZ = F.embedding(tokens_BnK.clamp_min(0), self.code_table_VZ[part.rows])
        codes_BnKZ = torch.where((tokens_BnK < 0)[..., None], self.mask_Z, codes_BnKZ)
        return rearrange(codes_BnKZ, "b n k z -> b n (k z)")

    def _draw_masks(self, tokens_BNK: Tensor, context: Context) -> Tensor:
        """Which codes are masked, bool [B, N, K]: at least one of each image. Without a key, those of `measure`."""
        key = context.draw_key("mask")
        if key is None:
            return self._fixed_masks(tokens_BNK)
        uniform, device, batch_size = context.kernels.uniform, tokens_BNK.device, len(tokens_BNK)
        r_B = uniform(fold_key(key, "ratio"), (batch_size,), device)
        uniform_BS = uniform(fold_key(key, "places"), (batch_size, tokens_BNK[0].numel()), device)
        return self._masks(r_B, uniform_BS)

    def _fixed_masks(self, tokens_BNK: Tensor) -> Tensor:
        """As `_draw_masks`, but from keys that are hashes of each image's tokens."""
        tokens_BS = rearrange(tokens_BNK, "b n k -> b (n k)").to(torch.int32)
        places_S = torch.arange(tokens_BS.shape[1], dtype=torch.int32, device=tokens_BS.device)
        keys_B = mix_bits(mix_bits(places_S) ^ tokens_BS).sum(1, dtype=torch.int32)
        r_B = uniform_rows(fold_key(keys_B, "ratio"), 1)[:, 0]
        return self._masks(r_B, uniform_rows(fold_key(keys_B, "places"), tokens_BS.shape[1]))

    def _masks(self, r_B: Tensor, uniform_BS: Tensor) -> Tensor:
        masked_BS = choose_masked(mask_ratio(self.schedule, r_B), uniform_BS)
        return rearrange(masked_BS, "b (n k) -> b n k", k=self.grid.num_channels)


def _parts(grid: TokenGrid) -> Iterator[_Part]:
    """The parts of all levels, in order."""
    starts = itertools.accumulate((level.num_positions for level in grid.levels), initial=0)
    rows = itertools.accumulate((level.vocabulary for level in grid.levels), initial=0)
    for level, start, row in zip(grid.levels, starts, rows, strict=False):
        end, last = start + level.num_positions, row + level.vocabulary
        yield _Part(level, slice(start, end), slice(row, last),
                    slice(row * grid.num_channels, last * grid.num_channels))
