"""A codebook that follows the means of its latents (van den Oord et al., 2017, appendix A.1), and restarts dead codes.

    B batch, h w latent size, Z code dimension, K channels, P latents, V vocabulary
"""
from collections.abc import Mapping

import gin
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.grid import Level
from vqim.contracts.learning import Advanced
from vqim.nn.layers import Dense
from vqim.nn.module import statistic
from vqim.state.init import Constant, Normal
from vqim.tokenizer.model import Codes, Quantized
from vqim.tokenizer.quantizer.vector import nearest_code


class EmaQuantizer(nn.Module):
    """`channels` codes a position, all of one codebook; a code with a running count below `restart_below` restarts."""

    widening = ("project_out/",)

    def __init__(self, width: int, vocabulary: int, code_dim: int, channels: int = 1, decay: float = 0.9,
                 restart_below: float = 0.1):
        super().__init__()
        self.width_in = self.width_out = width
        self.channels, self.decay, self.restart_below = channels, decay, restart_below
        self.project_in, self.project_out = Dense(width, code_dim * channels), Dense(code_dim * channels, width)
        self.codebook_VZ = statistic((vocabulary, code_dim), Normal(1.0), "vocabulary", "features")
        self.counts_V = statistic((vocabulary,), Constant(1.0), "vocabulary")

    def levels(self, height: int, width: int) -> tuple[Level, ...]:
        return (Level(height, width, self.channels, len(self.counts_V)),)

    def forward(self, latents_BhwD: Tensor, context: Context) -> Quantized:
        z_BhwKZ = rearrange(self.project_in(latents_BhwD, context).float(), "b h w (k z) -> b h w k z", k=self.channels)
        indices_BhwK = nearest_code(z_BhwKZ.detach(), self.codebook_VZ, context.kernels)
        found_BhwKZ = F.embedding(indices_BhwK, self.codebook_VZ)
        codes = self._codes(z_BhwKZ + (found_BhwKZ - z_BhwKZ).detach(), context)
        losses = {"commitment": 0.25 * (z_BhwKZ - found_BhwKZ).square().mean()}
        sums = {} if context.step_key is None else self._sums(z_BhwKZ.detach(), indices_BhwK, context)
        return Quantized(codes, (indices_BhwK,), losses, sums)

    def lookup(self, indices: tuple[Tensor, ...], context: Context) -> Codes:
        return self._codes(F.embedding(indices[0], self.codebook_VZ), context)

    def advance(self, sums: Mapping[str, Tensor], context: Context) -> Advanced:
        counts_V = self.decay * self.counts_V + (1 - self.decay) * sums["counts"]
        total_VZ = self.decay * self.counts_V[:, None] * self.codebook_VZ + (1 - self.decay) * sums["vectors"]
        dead_V = counts_V < self.restart_below
        codebook_VZ = torch.where(dead_V[:, None], sums["picks"], total_VZ / counts_V.clamp_min(1e-5)[:, None])
        return Advanced({"codebook_VZ": codebook_VZ, "counts_V": torch.where(dead_V, 1.0, counts_V)},
                        {"restarted": dead_V.float().sum()})

    def _codes(self, found_BhwKZ: Tensor, context: Context) -> Codes:
        vectors_BhwZ = rearrange(found_BhwKZ, "b h w k z -> b h w (k z)").to(context.dtype)
        return Codes(vectors_BhwZ, self.project_out(vectors_BhwZ, context))

    def _sums(self, z_BhwKZ: Tensor, indices_BhwK: Tensor, context: Context) -> dict[str, Tensor]:
        """Counts, sums of latents, and for each code one latent of the whole batch, drawn alike by all its parts."""
        z_PZ, codes_V = z_BhwKZ.flatten(0, -2), torch.arange(len(self.counts_V), device=z_BhwKZ.device)
        chosen_PV = (indices_BhwK.flatten()[:, None] == codes_V).float()
        (number, parts), key = context.micro_batch, context.step_draw_key("restart")
        place_V = (context.kernels.uniform(key, (len(codes_V),), z_PZ.device) * (parts * len(z_PZ))).long()
        here_P = number * len(z_PZ) + torch.arange(len(z_PZ), device=z_PZ.device)
        picked_PV = (here_P[:, None] == place_V).float()
        multiply = context.kernels.precise_matmul
        return {"counts": chosen_PV.sum(0), "vectors": multiply(chosen_PV.mT, z_PZ),
                "picks": multiply(picked_PV.mT, z_PZ)}


gin.register(EmaQuantizer, module="plugin")
