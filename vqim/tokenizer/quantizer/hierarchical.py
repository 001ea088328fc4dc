"""A hierarchy of codebooks, after VQ-VAE-2 (Razavi et al., 2019): ViT-VQGAN's Table 3 **, codes at 64x64 and 32x32.

    B batch, h w latent size, D latent width, C channels, H W size of an image of latents, K codes a position
"""
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from vqim.contracts.context import Context, scheduled_scalars
from vqim.contracts.grid import Level
from vqim.contracts.learning import Advanced, Advancing
from vqim.nn.convolution import Downsample, ResidualBlock, Upsample, repeat_pixels
from vqim.nn.layers import check_positive
from vqim.tokenizer.model import Codes, Quantized, Quantizer


class HierarchicalQuantizer(nn.Module):
    """Quantises latents twice: at half their size (top), then at full size, conditioned on the top's codes (bottom).

        top    = quantise(down(latents))
        bottom = quantise(latents, condition(top))
        decoder's input: widen(top), bottom

    where a comma concatenates channels. The blocks are VQGAN's. The 1x1 convolutions before and after each
    quantisation are the two quantizers' own projections. A top that is itself a hierarchy makes three levels.

    Args:
      width_in: the width of the encoder's latents.
      top: the quantizer at half size. Its widths have to be multiples of 32, the number of normalisation groups.
      bottom: the quantizer at full size, with one level. Its width_in has to be `width_in` + top.width_out.
      num_blocks: the number of residual blocks after `down` and before `condition`, 2 in VQ-VAE-2.
    """

    def __init__(self, width_in: int, top: Quantizer, bottom: Quantizer, num_blocks: int = 2):
        super().__init__()
        check_positive(width_in=width_in, num_blocks=num_blocks)
        if bottom.width_in != width_in + top.width_out:
            raise ValueError(f"bottom.width_in must be width_in + top.width_out = {width_in} + {top.width_out}, "
                             f"got {bottom.width_in}")
        if any(getattr(quantizer, "kmeans", None) for quantizer in (top, bottom)):
            raise ValueError("top and bottom must not be re-initialised by k-means: a hierarchy does not do that")
        self.width_in, self.width_out = width_in, top.width_out + bottom.width_out
        self.top, self.bottom = top, bottom
        self.down = Downsample(width_in, top.width_in)
        self.down_blocks = nn.ModuleList(ResidualBlock(top.width_in, top.width_in) for _ in range(num_blocks))
        self.condition_blocks = nn.ModuleList(ResidualBlock(top.width_out, top.width_out) for _ in range(num_blocks))
        self.condition = Upsample(top.width_out, top.width_out)
        self.widen = Upsample(top.width_out, top.width_out)
        # The top's own widening influences the bottom's codes, which are conditioned on it; how its codes are used
        # does not.
        self.widening = ("widen/", *(f"bottom/{name}" for name in bottom.widening),
                         *(f"top/{name}" for name in top.widening if name.endswith("use_V")))

    def levels(self, height: int, width: int) -> tuple[Level, ...]:
        """The top's levels, then the bottom's."""
        if height % 2 or width % 2:
            raise ValueError(f"the latents' height and width must be even to be halved, got {height}x{width}")
        bottom = self.bottom.levels(height, width)
        if len(bottom) != 1:
            raise ValueError(f"bottom must give one level of codes, got {len(bottom)}; let top be the hierarchy")
        return self.top.levels(height // 2, width // 2) + bottom

    def host_scalars(self, step: int) -> dict[str, float]:
        """The numbers of both quantizers."""
        return scheduled_scalars(step, top=self.top, bottom=self.bottom)

    def forward(self, latents_BhwD: Tensor, context: Context) -> Quantized:
        """Latents [B, h, w, width_in] to codes, the top's first."""
        x_BCHW = self.down(rearrange(latents_BhwD, "b h w d -> b d h w"), context)
        for block in self.down_blocks:
            x_BCHW = block(x_BCHW, context)
        top = self.top(rearrange(x_BCHW, "b c h w -> b h w c"), context.fold("top"))
        x_BCHW = rearrange(top.codes.latents_BhwD, "b h w d -> b d h w")
        for block in self.condition_blocks:
            x_BCHW = block(x_BCHW, context)
        condition_BhwC = rearrange(self.condition(x_BCHW, context), "b c h w -> b h w c")
        bottom = self.bottom(
            torch.cat([latents_BhwD.to(context.dtype), condition_BhwC], -1), context.fold("bottom"))
        levels = {"top": top, "bottom": bottom}
        losses = {f"{name}_{term}": value for name, level in levels.items() for term, value in level.losses.items()}
        sums = {f"{name}/{key}": value for name, level in levels.items() for key, value in level.sums.items()}
        codes = self._side_by_side(top.codes, bottom.codes, context)
        # For every level or for none: a level without a lookup has no place among the others.
        lookups = top.lookups + bottom.lookups if top.lookups and bottom.lookups else ()
        return Quantized(codes, top.indices + bottom.indices, losses, sums, lookups)

    def lookup(self, indices: tuple[Tensor, ...], context: Context) -> Codes:
        """Codes for each level to vectors [B, h, w, width_out]."""
        top = self.top.lookup(indices[:-1], context.fold("top"))
        bottom = self.bottom.lookup(indices[-1:], context.fold("bottom"))
        return self._side_by_side(top, bottom, context)

    def advance(self, sums: Mapping[str, Tensor], context: Context) -> Advanced:
        """See `vqim.contracts.learning.Advancing`: advances those quantizers that have something to advance."""
        arrays: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        for name, quantizer in (("top", self.top), ("bottom", self.bottom)):
            if isinstance(quantizer, Advancing):
                own = {key.removeprefix(f"{name}/"): value for key, value in sums.items() if key.startswith(f"{name}/")}
                new = quantizer.advance(own, context.fold(name))
                arrays |= {f"{name}/{key}": value for key, value in new.arrays.items()}
                metrics |= {f"{name}/{key}": value for key, value in new.metrics.items()}
        return Advanced(arrays, metrics)

    def _side_by_side(self, top: Codes, bottom: Codes, context: Context) -> Codes:
        """The decoder's input: the top's vectors at the bottom's size, and the bottom's vectors."""
        wide_BCHW = self.widen(rearrange(top.latents_BhwD, "b h w d -> b d h w"), context)
        latents_BhwD = torch.cat([rearrange(wide_BCHW, "b c h w -> b h w c"), bottom.latents_BhwD], -1)
        large_BCHW = repeat_pixels(rearrange(top.vectors_BhwZ, "b h w z -> b z h w"))
        return Codes(torch.cat([rearrange(large_BCHW, "b z h w -> b h w z"), bottom.vectors_BhwZ], -1), latents_BhwD)
