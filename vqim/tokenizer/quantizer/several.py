"""Several codes a position, all of one codebook: what multichannel and residual quantizers have in common.

    B batch, h w latent size, D latent width, K codes a position, Z code dimension, V vocabulary
"""
from collections.abc import Mapping

from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.evaluation import Lookup
from vqim.contracts.grid import Level
from vqim.contracts.learning import Advanced
from vqim.nn.layers import Dense, check_positive
from vqim.nn.module import parameter, statistic
from vqim.state.init import Constant, Uniform
from vqim.tokenizer.model import Codes, Quantized
from vqim.tokenizer.quantizer.upkeep import advance_codebook, channel_sums, check_upkeep


class SharedCodebook(nn.Module):
    """Projections around a codebook that all K codes of a position share, its losses' weights and its upkeep.

    Latents and codes are not normalised. The codebook starts in U(-1 / V, 1 / V), as VQGAN's.

    Args:
      width_in: the width of the encoder's latents.
      width_out: the width of the decoder's inputs.
      vocabulary: the number of codes.
      code_dim: the number of dimensions of a whole position, to which latents are projected (VQGAN's `quant_conv`).
      vector_dim: the number of dimensions of a code.
      channels: K, the number of codes a position.
      codebook_weight: the weight of the codebook's loss.
      commitment_weight: the weight of the commitment loss.
      ema_decay: None trains the codebook by gradients. With a number, codes follow the running means of their latents
        instead (`upkeep.advance_codebook`), and there is no codebook loss.
      restart_below: a code whose running use is below this share of the mean code's use is replaced by a latent from
        the batch. 0 replaces none.
      project_out: whether what was looked up is projected to the decoder's width (VQGAN's `post_quant_conv`). False
        gives the decoder the vectors as they are, for a decoder that reads nothing else; width_out is then code_dim.
    """

    def __init__(
        self, width_in: int, width_out: int, vocabulary: int, code_dim: int, vector_dim: int, channels: int,
        codebook_weight: float, commitment_weight: float, ema_decay: float | None, restart_below: float,
        project_out: bool,
    ):
        super().__init__()
        for name, weight in (("codebook_weight", codebook_weight), ("commitment_weight", commitment_weight)):
            if weight < 0:
                raise ValueError(f"{name} must be at least 0, got {weight}")
        if not project_out and width_out != code_dim:
            raise ValueError(
                f"width_out must be code_dim = {code_dim} where vectors are not projected, got {width_out}")
        check_positive(width_in=width_in, width_out=width_out, vocabulary=vocabulary)
        check_upkeep(ema_decay, restart_below)
        self.width_in, self.width_out, self.vocabulary, self.channels = width_in, width_out, vocabulary, channels
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        self.ema_decay, self.restart_below = ema_decay, restart_below
        self.project_in = Dense(width_in, code_dim)
        declare = parameter if ema_decay is None else statistic
        self.codebook_VZ = declare((vocabulary, vector_dim), Uniform(1 / vocabulary), "vocabulary", "features")
        has_upkeep = ema_decay is not None or restart_below > 0
        self.use_V = statistic((vocabulary,), Constant(1.0), "vocabulary") if has_upkeep else None
        self.project_out = Dense(code_dim, width_out) if project_out else None
        self.widening = ("project_out/", "use_V")  # no token depends on these

    def levels(self, height: int, width: int) -> tuple[Level, ...]:
        """One level, with K codes for each latent."""
        return (Level(height, width, self.channels, self.vocabulary),)

    def advance(self, sums: Mapping[str, Tensor], context: Context) -> Advanced:
        """The codebook and the use of its codes after a step; see `upkeep.advance_codebook`."""
        if self.use_V is None:
            return Advanced()
        return advance_codebook(
            self.codebook_VZ, self.use_V, sums, self.ema_decay, self.restart_below, keep_lengths=False)

    def weighted(self, codebook_loss: Tensor, commitment_loss: Tensor) -> dict[str, Tensor]:
        """The losses with their weights; a codebook that follows its latents has none of its own."""
        commitment = {"commitment": self.commitment_weight * commitment_loss}
        if self.ema_decay is not None:
            return commitment
        return {"codebook": self.codebook_weight * codebook_loss} | commitment

    def quantized(
        self, codes: Codes, z_BhwKZ: Tensor, indices_BhwK: Tensor, losses: dict[str, Tensor], context: Context,
    ) -> Quantized:
        """The output, with what `advance` needs of a batch: which latents were looked up, and what was found."""
        sums = {}
        if self.use_V is not None and context.step_key is not None:
            sums = channel_sums(z_BhwKZ.flatten(0, 2), indices_BhwK.flatten(0, 2), self.vocabulary, context)
        looked_up = Lookup(z_BhwKZ.flatten(1, 3), self.codebook_VZ.detach())
        return Quantized(codes, (indices_BhwK,), losses, sums, (looked_up,))

    def widen(self, vectors_BhwZ: Tensor, context: Context) -> Codes:
        """A position's vectors, and the same projected to the decoder's width."""
        vectors_BhwZ = vectors_BhwZ.to(context.dtype)
        if self.project_out is None:
            return Codes(vectors_BhwZ, vectors_BhwZ)
        return Codes(vectors_BhwZ, self.project_out(vectors_BhwZ, context))
