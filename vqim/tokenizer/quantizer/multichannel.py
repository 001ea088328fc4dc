"""Multichannel quantisation: MoVQ (Zheng et al., 2022), section 3.1.

    B batch, h w latent size, D latent width, K channels, Z dimensions of a chunk, V vocabulary
"""
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vqim.contracts.context import Context
from vqim.nn.layers import check_positive
from vqim.tokenizer.model import Codes, Quantized
from vqim.tokenizer.quantizer.several import SharedCodebook
from vqim.tokenizer.quantizer.vector import nearest_code


class MultichannelQuantizer(SharedCodebook):
    """Cuts each latent into chunks, and finds the nearest code for every chunk in one codebook that all share.

    The paper cuts 256 dimensions into c = 4 chunks and has 1024 codes of n_q = n_z / c = 64 dimensions. One chunk is
    VQGAN's quantizer.

    Equation (3)'s squared norms are means over positions and dimensions, as in VQGAN's code, so that they do not depend
    on the number of chunks. Equation (3) weighs the commitment with beta and the codebook with 1; the code that VQGAN
    released, the paper's baseline, has them the other way round (`legacy = True` in
    taming-transformers, taming/modules/vqvae/quantize.py): that is codebook_weight 0.25 and commitment_weight 1.

    Args:
      width_in: the width of the encoder's latents.
      width_out: the width of the decoder's inputs.
      vocabulary: the number of codes, 1024 or 16384 in the paper.
      code_dim: the number of dimensions that are cut into chunks, 256 in the paper.
      channels: the number of chunks, 4 in the paper's default, 1 to 8 in Figure 6 (c).
      codebook_weight: the weight of the codebook's loss, the second term of equation (3).
      commitment_weight: beta in equation (3).
      ema_decay: as for `VectorQuantizer`; None in the paper.
      restart_below: as for `VectorQuantizer`; 0 in the paper.
      project_out: whether codes are projected to the decoder's width, as VQGAN does. False for a decoder that sees the
        codes' vectors in its normalisations alone (`nn.SpatialNorm`), and whose first features are independent of them.
    """

    def __init__(
        self, width_in: int, width_out: int, vocabulary: int, code_dim: int = 256, channels: int = 4,
        codebook_weight: float = 1.0, commitment_weight: float = 0.25, ema_decay: float | None = None,
        restart_below: float = 0.0, project_out: bool = True,
    ):
        check_positive(code_dim=code_dim, channels=channels)
        if code_dim % channels:
            raise ValueError(f"code_dim must be a multiple of channels = {channels}, its chunks; got {code_dim}")
        super().__init__(width_in, width_out, vocabulary, code_dim, code_dim // channels, channels, codebook_weight,
                         commitment_weight, ema_decay, restart_below, project_out)

    def forward(self, latents_BhwD: Tensor, context: Context) -> Quantized:
        """Latents [B, h, w, width_in] to the nearest codes of their chunks; the lookup is always in float32."""
        z_BhwKZ = rearrange(self.project_in(latents_BhwD, context).float(), "b h w (k z) -> b h w k z", k=self.channels)
        indices_BhwK = nearest_code(z_BhwKZ.detach(), self.codebook_VZ.detach(), context.kernels)
        found_BhwKZ = F.embedding(indices_BhwK, self.codebook_VZ)
        losses = self.weighted((found_BhwKZ - z_BhwKZ.detach()).square().mean(),
                               (z_BhwKZ - found_BhwKZ.detach()).square().mean())
        codes = self._join(z_BhwKZ + (found_BhwKZ - z_BhwKZ).detach(), context)
        return self.quantized(codes, z_BhwKZ.detach(), indices_BhwK, losses, context)

    def lookup(self, indices: tuple[Tensor, ...], context: Context) -> Codes:
        """Codes [B, h, w, K] to vectors [B, h, w, code_dim] and latents [B, h, w, width_out]."""
        return self._join(F.embedding(indices[0], self.codebook_VZ), context)

    def _join(self, found_BhwKZ: Tensor, context: Context) -> Codes:
        return self.widen(rearrange(found_BhwKZ, "b h w k z -> b h w (k z)"), context)
