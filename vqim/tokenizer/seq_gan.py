"""SeQ-GAN's decoder: Table 7 of Gu et al. (2022). Its encoder is `CNNEncoder` without attention.

The published model, f16, has channels 128, multipliers (1, 1, 2, 2, 4), num_blocks 2, width 256, with num_attention 0
in the first phase and 1 in the second. docs/papers.md has the arithmetic of its size.

    B batch, C image channels, H W image size, h w latent size, D latent width
"""
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.nn.convolution import Conv2d, GroupNorm, ResidualBlock, Upsample
from vqim.nn.layers import check_rate
from vqim.nn.windows import RegionalDilatedAttention
from vqim.tokenizer.cnn import check_sizes
from vqim.tokenizer.model import Codes, Reconstruction


class SeQGANDecoder(nn.Module):
    """A stage of residual blocks for every resolution, which is doubled in between; the lowest has two blocks more.

    It differs from VQGAN's decoder: channels change in the upsampling convolutions, so that no block needs a 1x1
    convolution; a stage has as many blocks as the encoder's; attention is at every resolution or nowhere.

    A decoder with attention starts as the same function as one without, since new attention adds nothing. All other
    arrays have the same names, so the second phase can start from the first one's decoder.

    Args:
      channels: the number of channels at the highest resolution.
      multipliers: the channels in each stage, from the highest resolution on, as multiples of `channels`.
      num_blocks: the number of residual blocks in a stage; 4 is '+Conv x2' of Table 1.
      width: the width of the codes, 256 in the paper.
      num_attention: the number of pairs of regional and dilated attention after the blocks of each stage; 2 is
        '+Attention x2' of Table 1.
      dropout_rate: the dropout rate in residual blocks, 0.0 here; the paper does not say.
      num_channels: the number of image channels.
    """

    def __init__(
        self, channels: int, multipliers: tuple[int, ...], num_blocks: int, width: int, num_attention: int = 0,
        dropout_rate: float = 0.0, num_channels: int = 3,
    ):
        super().__init__()
        check_sizes(channels, multipliers, num_blocks, width, num_channels)
        check_rate("dropout_rate", dropout_rate)
        if num_attention < 0:
            raise ValueError(f"num_attention must be at least 0, got {num_attention}")
        self.width = width
        widths = [channels * multiplier for multiplier in reversed(multipliers)]
        self.conv_in = Conv2d(width, widths[0], kernel_size=3)
        self.stages = nn.ModuleList(
            Stage(stage_width, following, num_blocks + (2 if i == 0 else 0), num_attention, dropout_rate)
            for i, (stage_width, following) in enumerate(zip(widths, [*widths[1:], None], strict=True)))
        self.norm = GroupNorm(widths[-1])
        self.conv_out = Conv2d(widths[-1], num_channels, kernel_size=3)

    def forward(self, codes: Codes, context: Context) -> Reconstruction:
        """Codes to images."""
        x_BCHW = self.conv_in(rearrange(codes.latents_BhwD, "b h w d -> b d h w"), context)
        for i, stage in enumerate(self.stages):
            x_BCHW = stage(x_BCHW, context.fold(f"stage {i}"))
        x_BCHW = self.conv_out(F.silu(self.norm(x_BCHW, context)), context).float()
        return Reconstruction((x_BCHW + 1) / 2)

    def image_part(self, name: str, array: Tensor) -> Tensor:
        """The array unchanged: every output is a part of the image."""
        return array


class Stage(nn.Module):
    """Residual blocks at one resolution, attention, and a change to the next resolution and its width.

    Args:
      width: the number of channels.
      following: the number of channels of the next stage; None for the last stage.
      num_blocks: the number of residual blocks.
      num_attention: the number of pairs of regional and dilated attention.
      dropout_rate: the dropout rate in residual blocks.
    """

    def __init__(self, width: int, following: int | None, num_blocks: int, num_attention: int, dropout_rate: float):
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(width, width, dropout_rate) for _ in range(num_blocks))
        self.attention = nn.ModuleList(RegionalDilatedAttention(width) for _ in range(num_attention))
        self.upsample = None if following is None else Upsample(width, following)

    def forward(self, x_BCHW: Tensor, context: Context) -> Tensor:
        """[B, width, H, W] to [B, following, 2 H, 2 W], or to the same shape in the last stage."""
        for i, block in enumerate(self.blocks):
            x_BCHW = block(x_BCHW, context.fold(f"block {i}"))
        for i, attention in enumerate(self.attention):
            x_BCHW = attention(x_BCHW, context.fold(f"attention {i}"))
        return x_BCHW if self.upsample is None else self.upsample(x_BCHW, context)
