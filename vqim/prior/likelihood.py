"""What priors share that give each code a probability: their loss in nats and bits, and what is measured of them.

    B batch, N positions, K codes a position, S = N K codes of an image, D width, C classes, V vocabulary
"""
import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.grid import TokenGrid
from vqim.nn.layers import check_positive, check_rate
from vqim.nn.module import parameter
from vqim.prior.layout import class_rows
from vqim.state.init import Init

NATS_PER_BIT = math.log(2)


class LikelihoodPrior(nn.Module):
    """Base class of priors that give each code a probability, given the class and the codes before it.

    The `forward` of a prior takes (tokens_BNK, labels_B, context) and gives the logits of each code, [B, S, V].

    Args:
      grid: the token grid of the tokenizer whose tokens are modelled.
      num_classes: the number of classes; 0 models images without classes.
      width: D of the class tokens.
      class_dropout_rate: the share of training images whose class is not told.
      init: initial values of the class tokens.
    """

    def __init__(self, grid: TokenGrid, num_classes: int, width: int, class_dropout_rate: float, init: Init):
        super().__init__()
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {num_classes}")
        check_positive(width=width)
        check_rate("class_dropout_rate", class_dropout_rate)
        self.grid, self.num_classes, self.class_dropout_rate = grid, num_classes, class_dropout_rate
        self.class_table_CD = parameter((num_classes + 1, width), init, "vocabulary", "features")

    def loss(
        self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean of -log P over codes, in nats, and metrics, where it is also in bits."""
        loss = self.token_losses(tokens_BNK, labels_B, context).mean()
        return loss, {"loss/bits_per_token": loss.detach() / NATS_PER_BIT}

    def token_losses(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """-log P of each code, float32 [B, S], in nats."""
        return context.kernels.cross_entropy(self(tokens_BNK, labels_B, context), tokens_BNK.flatten(1))

    def measure(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> dict[str, Tensor]:
        """Each image's mean bits per code, and the share of its codes that are the likeliest ones: float32 [B]."""
        logits_BSV, codes_BS = self(tokens_BNK, labels_B, context), tokens_BNK.flatten(1)
        nats_BS = context.kernels.cross_entropy(logits_BSV, codes_BS)
        return {"bits_per_token": nats_BS.mean(1) / NATS_PER_BIT,
                "token_accuracy": (logits_BSV.float().argmax(-1) == codes_BS).float().mean(1)}

    def expected(self, tokens_BNK: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """The likeliest code in each place, given the true ones before it: int64 [B, N, K]."""
        codes_BS = self(tokens_BNK, labels_B, context).float().argmax(-1)
        return rearrange(codes_BS, "b (n k) -> b n k", k=self.grid.num_channels)

    def embed_class(self, like_B: Tensor, labels_B: Tensor | None, context: Context) -> Tensor:
        """The class tokens, [B, 1, D]."""
        rows_B = class_rows(
            labels_B, len(like_B), self.num_classes, self.class_dropout_rate, context, like_B.device)
        return F.embedding(rows_B, self.class_table_CD)[:, None].to(context.dtype)
