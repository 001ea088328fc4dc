"""A hierarchy of codebooks, after VQ-VAE-2 (Razavi et al., 2019): ViT-VQGAN's Table 3 **, codes at 64x64 and 32x32.

    B batch, h w latent size, D latent width, C channels, H W size of an image of latents, K codes a position
"""
import torch
from einops import rearrange
from torch import Tensor, nn

from vqim.nn.context import Context, scheduled_scalars
from vqim.nn.convolution import Downsample, ResidualBlock, Upsample
from vqim.nn.layers import check_positive
from vqim.tokenizer.grid import Level
from vqim.tokenizer.model import Quantized, Quantizer


class HierarchicalQuantizer(nn.Module):
    """Codes of the latents at half their size, and codes of the latents given those.

        top    = quantise(down(latents))
        bottom = quantise(latents, condition(top))
        decoder's input: widen(top), bottom

    where a comma puts channels side by side. The blocks are VQGAN's; the 1x1 convolutions before and after each
    quantisation are the two quantizers' own projections. A top that is a hierarchy itself makes three levels.

    Args:
      width_in: of the encoder's latents.
      top: from any width to any; both have to be multiples of 32, the groups of normalisations.
      bottom: from width_in + top.width_out; gives one level.
      num_blocks: residual blocks after `down` and before `condition`, 2 in VQ-VAE-2.
    """

    def __init__(self, width_in: int, top: Quantizer, bottom: Quantizer, num_blocks: int = 2):
        super().__init__()
        check_positive(width_in=width_in, num_blocks=num_blocks)
        if bottom.width_in != width_in + top.width_out:
            raise ValueError(f"bottom.width_in must be width_in + top.width_out = {width_in} + {top.width_out}, "
                             f"got {bottom.width_in}")
        self.width_in, self.width_out = width_in, top.width_out + bottom.width_out
        self.top, self.bottom = top, bottom
        self.down = Downsample(width_in, top.width_in)
        self.down_blocks = nn.ModuleList(ResidualBlock(top.width_in, top.width_in) for _ in range(num_blocks))
        self.condition_blocks = nn.ModuleList(ResidualBlock(top.width_out, top.width_out) for _ in range(num_blocks))
        self.condition = Upsample(top.width_out, top.width_out)
        self.widen = Upsample(top.width_out, top.width_out)

    def levels(self, height: int, width: int) -> tuple[Level, ...]:
        """The top's, then the bottom's."""
        if height % 2 or width % 2:
            raise ValueError(f"the latents' height and width must be even to be halved, got {height}x{width}")
        bottom = self.bottom.levels(height, width)
        if len(bottom) != 1:
            raise ValueError(f"bottom must give one level of codes, got {len(bottom)}; let top be the hierarchy")
        return self.top.levels(height // 2, width // 2) + bottom

    def host_scalars(self, step: int) -> dict[str, float]:
        """Those of both quantizers."""
        return scheduled_scalars(step, top=self.top, bottom=self.bottom)

    def forward(self, latents_BhwD: Tensor, context: Context) -> Quantized:
        """Latents [B, h, w, width_in] to codes, the top's first."""
        x_BCHW = self.down(rearrange(latents_BhwD, "b h w d -> b d h w"), context)
        for block in self.down_blocks:
            x_BCHW = block(x_BCHW, context)
        top = self.top(rearrange(x_BCHW, "b c h w -> b h w c"), context.fold("top"))
        x_BCHW = rearrange(top.latents_BhwD, "b h w d -> b d h w")
        for block in self.condition_blocks:
            x_BCHW = block(x_BCHW, context)
        condition_BhwC = rearrange(self.condition(x_BCHW, context), "b c h w -> b h w c")
        bottom = self.bottom(
            torch.cat([latents_BhwD.to(context.dtype), condition_BhwC], -1), context.fold("bottom"))
        losses = {f"{name}_{term}": value for name, level in (("top", top), ("bottom", bottom))
                  for term, value in level.losses.items()}
        return Quantized(
            self._side_by_side(top.latents_BhwD, bottom.latents_BhwD, context), top.indices + bottom.indices, losses)

    def lookup(self, indices: tuple[Tensor, ...], context: Context) -> Tensor:
        """Codes of the levels to vectors [B, h, w, width_out]."""
        top_BhwD = self.top.lookup(indices[:-1], context.fold("top"))
        bottom_BhwD = self.bottom.lookup(indices[-1:], context.fold("bottom"))
        return self._side_by_side(top_BhwD, bottom_BhwD, context)

    def _side_by_side(self, top_BhwD: Tensor, bottom_BhwD: Tensor, context: Context) -> Tensor:
        """What the decoder gets: the top's vectors at the bottom's size, and the bottom's."""
        wide_BCHW = self.widen(rearrange(top_BhwD, "b h w d -> b d h w"), context)
        return torch.cat([rearrange(wide_BCHW, "b c h w -> b h w c"), bottom_BhwD], -1)
