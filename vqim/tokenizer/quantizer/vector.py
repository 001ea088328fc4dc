"""Vector quantisation with factorised, l2-normalised codes. ViT-VQGAN section 3.2, Appendix C.

    B batch, h w latent size, D latent width, Z code dimension, V vocabulary, K = 1 codes a position
"""
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqim.contracts.context import Context, Kernels
from vqim.contracts.evaluation import Lookup
from vqim.contracts.grid import Level
from vqim.contracts.learning import Advanced
from vqim.nn.layers import Dense, check_positive
from vqim.nn.module import parameter, statistic
from vqim.state.init import Constant, Normal, Uniform
from vqim.tokenizer.model import Codes, Quantized
from vqim.tokenizer.quantizer.distance import relative_distance
from vqim.tokenizer.quantizer.entropy import unevenness
from vqim.tokenizer.quantizer.kmeans import KMeans, centres, kept
from vqim.tokenizer.quantizer.upkeep import advance_codebook, check_upkeep, upkeep_sums


class VectorQuantizer(nn.Module):
    """Finds the nearest code in one codebook for each position, in a space with few dimensions.

    Latents are projected to `code_dim` for the lookup, and the code found is projected to the decoder's width. The
    paper calls these factorised codes. Without factorisation, codes have the latents' width and nothing is projected.
    With `normalize`, latents and codes are first scaled to unit length, so that the nearest code is the one with the
    largest cosine similarity.

    Equation (1)'s squared norms are means over positions and over the code's dimensions, as in VQGAN's code
    (taming-transformers, taming/modules/vqvae/quantize.py). The sum over dimensions, as the norm is
    written, would be `code_dim` times as large: with 32, the paper's weights then leave one code in use.

    Args:
      width_in: the width of the encoder's latents.
      width_out: the width of the decoder's inputs.
      vocabulary: the number of codes, 8192 in the paper.
      code_dim: the number of dimensions for the lookup, 32 in the paper's default, 4 to 256 in Table 4. None for codes
        that are not factorised; width_in and width_out must then be equal.
      normalize: whether to l2-normalise latents and codes.
      commitment_weight: beta in equation (1).
      ema_decay: None trains the codebook by gradients, as in the paper. With a number, codes follow the running means
        of their latents instead (`upkeep.advance_codebook`).
      restart_below: a code whose running use is below this share of the mean code's use is replaced by a latent from
        the batch. 0, as in the paper, replaces none.
      entropy_weight: gamma of SeQ-GAN's regulariser of codebook use (`entropy.unevenness`), 0.01 in that paper; 0 is
        none.
      kmeans: when and how the codebook is re-initialised by k-means; None for never.
      initial_bound: codes start in U(-initial_bound, initial_bound); VQGAN's is 1 / vocabulary. None for N(0, 1).
    """

    def __init__(
        self, width_in: int, width_out: int, vocabulary: int, code_dim: int | None,
        normalize: bool = True, commitment_weight: float = 0.25, ema_decay: float | None = None,
        restart_below: float = 0.0, entropy_weight: float = 0.0, kmeans: KMeans | None = None,
        initial_bound: float | None = None,
    ):
        super().__init__()
        check_positive(width_in=width_in, width_out=width_out, vocabulary=vocabulary,
                       code_dim=width_in if code_dim is None else code_dim)
        if code_dim is None and width_in != width_out:
            raise ValueError(f"width_in and width_out must be equal without code_dim, got {width_in} and {width_out}; "
                             "give a code_dim to project between them")
        for name, weight in (("commitment_weight", commitment_weight), ("entropy_weight", entropy_weight)):
            if not weight >= 0:
                raise ValueError(f"{name} must be at least 0, got {weight}")
        if initial_bound is not None and not initial_bound > 0:
            raise ValueError(f"initial_bound must be above 0, or None for N(0, 1); got {initial_bound}")
        check_upkeep(ema_decay, restart_below)
        if kmeans is not None and (ema_decay is not None or restart_below):
            raise ValueError("kmeans must be None where codes follow running means (ema_decay) or restart "
                             "(restart_below): each keeps a codebook in use by itself")
        self.width_in, self.width_out, self.vocabulary = width_in, width_out, vocabulary
        self.normalize, self.commitment_weight, self.entropy_weight = normalize, commitment_weight, entropy_weight
        self.project_in = None if code_dim is None else Dense(width_in, code_dim)
        self.ema_decay, self.restart_below = ema_decay, restart_below
        declare = parameter if ema_decay is None else statistic
        initial = Normal(1.0) if initial_bound is None else Uniform(initial_bound)
        self.codebook_VZ = declare((vocabulary, code_dim or width_in), initial, "vocabulary", "features")
        self.use_V = statistic((vocabulary,), Constant(1.0), "vocabulary") if self._has_upkeep else None
        self.kmeans = kmeans
        self.reservoir_RZ = None if kmeans is None else statistic(
            (kmeans.batches * vocabulary, code_dim or width_in), Constant(0.0), "reservoir", "features")
        self.project_out = None if code_dim is None else Dense(code_dim, width_out)
        self.widening = ("project_out/", "reservoir_RZ", "use_V")  # no token depends on these

    def levels(self, height: int, width: int) -> tuple[Level, ...]:
        """One level, with a code for each latent."""
        return (Level(height, width, 1, self.vocabulary),)

    def forward(self, latents_BhwD: Tensor, context: Context) -> Quantized:
        """Latents [B, h, w, width_in] to their nearest codes; the lookup is always in float32."""
        projected = latents_BhwD if self.project_in is None else self.project_in(latents_BhwD, context)
        z_BhwZ = self._place(projected.float())
        codes_VZ = self._place(self.codebook_VZ)
        indices_Bhw = nearest_code(z_BhwZ.detach(), codes_VZ.detach(), context.kernels)
        found_BhwZ = F.embedding(indices_Bhw, codes_VZ)
        codebook_loss = (found_BhwZ - z_BhwZ.detach()).square().mean()
        commitment_loss = (z_BhwZ - found_BhwZ.detach()).square().mean()
        straight_through = z_BhwZ + (found_BhwZ - z_BhwZ).detach()
        losses = {"codebook": codebook_loss, "commitment": self.commitment_weight * commitment_loss}
        if self.ema_decay is not None:
            del losses["codebook"]
        if self.entropy_weight:
            losses["entropy"] = self.entropy_weight * unevenness(z_BhwZ.flatten(0, -2), codes_VZ)
        sums = {}
        if (self._has_upkeep or self.kmeans) and context.step_key is not None:
            sums = upkeep_sums(z_BhwZ.detach().flatten(0, -2), indices_Bhw.flatten(), self.vocabulary, context)
        looked_up = Lookup(z_BhwZ.detach().flatten(1, 2), codes_VZ.detach())
        return Quantized(self._widen(straight_through, context), (indices_Bhw[..., None],), losses, sums, (looked_up,))

    def advance(self, sums: Mapping[str, Tensor], context: Context) -> Advanced:
        """The codebook and the use of its codes after a step; see `upkeep.advance_codebook` and `kmeans.kept`."""
        if self.reservoir_RZ is not None:
            return Advanced({"reservoir_RZ": kept(self.reservoir_RZ, sums["picks"])})
        if self.use_V is None:
            return Advanced()
        return advance_codebook(
            self._place(self.codebook_VZ) if self.ema_decay is not None else self.codebook_VZ,
            self.use_V, sums, self.ema_decay, self.restart_below, keep_lengths=self.normalize)

    def is_due(self, step: int) -> bool:
        """See `vqim.contracts.learning.Rebuilding`."""
        return self.kmeans is not None and self.kmeans.is_due(step)

    def rebuild(self, sums: Mapping[str, Tensor], context: Context) -> Advanced:
        """The codebook as the centres of k-means over the latents of the last batches, and their reservoir."""
        assert self.kmeans is not None
        advanced = self.advance(sums, context)
        found_VZ = centres(advanced.arrays["reservoir_RZ"], sums["picks"], self.kmeans.iterations, context.kernels)
        return Advanced({**advanced.arrays, "codebook_VZ": found_VZ}, advanced.metrics)

    def lookup(self, indices: tuple[Tensor, ...], context: Context) -> Codes:
        """Codes [B, h, w, 1] to vectors [B, h, w, width_out]."""
        return self._widen(F.embedding(indices[0][..., 0], self._place(self.codebook_VZ)), context)

    @property
    def _has_upkeep(self) -> bool:
        return self.ema_decay is not None or self.restart_below > 0

    def _place(self, vectors_Z: Tensor) -> Tensor:
        return l2_normalize(vectors_Z) if self.normalize else vectors_Z

    def _widen(self, found_BhwZ: Tensor, context: Context) -> Codes:
        """The codes' vectors, and the same projected to the decoder's width."""
        vectors_BhwZ = found_BhwZ.to(context.dtype)
        return Codes(vectors_BhwZ, vectors_BhwZ if self.project_out is None else self.project_out(found_BhwZ, context))


def l2_normalize(x_Z: Tensor) -> Tensor:
    """Vectors of length one, in float32; a zero vector stays zero and has a finite gradient."""
    x_Z = x_Z.float()
    return x_Z * torch.rsqrt(x_Z.square().sum(-1, keepdim=True) + 1e-12)


def nearest_code(z_Z: Tensor, codes_VZ: Tensor, kernels: Kernels) -> Tensor:
    """argmin over codes of the squared Euclidean distance: float32 [..., Z] and [V, Z] to int64 [...].

    Ties go to one of the codes, always the same.
    """
    return relative_distance(z_Z, codes_VZ, kernels).argmin(-1)
