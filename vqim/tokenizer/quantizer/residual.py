"""Residual quantisation: RQ-VAE (Lee et al., 2022, "Autoregressive Image Generation using Residual Quantization").

    B batch, h w latent size, D latent width, K depth, Z code dimension, V vocabulary
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from vqim.contracts.context import Context
from vqim.nn.layers import check_positive
from vqim.tokenizer.model import Codes, Quantized
from vqim.tokenizer.quantizer.several import SharedCodebook
from vqim.tokenizer.quantizer.vector import nearest_code


class ResidualQuantizer(SharedCodebook):
    """Finds a code for each latent, then a code for what is left of it, and so on: `depth` codes of one codebook.

    A position's vector is the sum of its codes. With z a latent and s_d the sum of its first d codes, the losses are

        codebook    1 / depth  sum_d |sg[z] - s_d|^2
        commitment  1 / depth  sum_d |z - sg[s_d]|^2

    so that every partial sum comes near the latent, not only the last. |.|^2 is a mean over dimensions. Means over
    dimensions and depths are those of the authors' code (rq-vae-transformer, rqvae/models/rqvae/quantizations.py); the
    paper prints the sum over depths. The codebook there follows its latents, without a codebook loss: ema_decay 0.99,
    and a restart of codes with less than one latent an update.

    Args:
      width_in: the width of the encoder's latents.
      width_out: the width of the decoder's inputs.
      vocabulary: the number of codes, 2048 for FFHQ and 16384 for ImageNet in the paper.
      code_dim: the number of dimensions of a code, 256 in the paper.
      depth: the number of codes a position, 4 in the paper's default, 16 in its largest.
      codebook_weight: the weight of the codebook's loss, where gradients train the codebook.
      commitment_weight: the weight of the commitment loss, 0.25 in the paper.
      ema_decay: as for `VectorQuantizer`; 0.99 in the paper.
      restart_below: as for `VectorQuantizer`.
      project_out: whether sums of codes are projected to the decoder's width, as VQGAN's codes are.
    """

    def __init__(
        self, width_in: int, width_out: int, vocabulary: int, code_dim: int = 256, depth: int = 4,
        codebook_weight: float = 1.0, commitment_weight: float = 0.25, ema_decay: float | None = None,
        restart_below: float = 0.0, project_out: bool = True,
    ):
        check_positive(code_dim=code_dim, depth=depth)
        super().__init__(width_in, width_out, vocabulary, code_dim, code_dim, depth, codebook_weight, commitment_weight,
                         ema_decay, restart_below, project_out)

    def forward(self, latents_BhwD: Tensor, context: Context) -> Quantized:
        """Latents [B, h, w, width_in] to codes, the coarsest first; the lookup is always in float32."""
        z_BhwZ = self.project_in(latents_BhwD, context).float()
        target_BhwZ, codes_VZ = z_BhwZ.detach(), self.codebook_VZ.detach()
        rest_BhwZ, sum_BhwZ = target_BhwZ, torch.zeros_like(target_BhwZ)
        rests, indices, codebook_losses, commitment_losses = [], [], [], []
        for _ in range(self.channels):
            found_Bhw = nearest_code(rest_BhwZ, codes_VZ, context.kernels)
            sum_BhwZ = sum_BhwZ + F.embedding(found_Bhw, self.codebook_VZ)
            rests.append(rest_BhwZ)
            indices.append(found_Bhw)
            codebook_losses.append((sum_BhwZ - target_BhwZ).square().mean())
            commitment_losses.append((z_BhwZ - sum_BhwZ.detach()).square().mean())
            rest_BhwZ = target_BhwZ - sum_BhwZ.detach()
        indices_BhwK = torch.stack(indices, -1)
        losses = self.weighted(torch.stack(codebook_losses).mean(), torch.stack(commitment_losses).mean())
        codes = self.widen(z_BhwZ + (sum_BhwZ - z_BhwZ).detach(), context)
        return self.quantized(codes, torch.stack(rests, -2), indices_BhwK, losses, context)

    def lookup(self, indices: tuple[Tensor, ...], context: Context) -> Codes:
        """Codes [B, h, w, K] to the sums of their vectors, [B, h, w, code_dim], and latents [B, h, w, width_out]."""
        return self.widen(F.embedding(indices[0], self.codebook_VZ).sum(-2), context)
