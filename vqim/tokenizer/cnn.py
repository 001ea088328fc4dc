"""VQGAN's convolutional encoder and decoder: 'CNN-VQGAN' in ViT-VQGAN's Tables 1, 4 and 7.

Esser et al. (2021), "Taming Transformers for High-Resolution Image Synthesis", Table 7. The published models are

    f16: channels 128, multipliers (1, 1, 2, 2, 4), num_blocks 2, width 256
    f8: channels 128, multipliers (1, 1, 2, 4), the same otherwise

ViT-VQGAN's 'channels x2' has 256 for 128. What VQGAN calls quant_conv and post_quant_conv, 1x1 convolutions on both
sides of the codes, are the projections of the quantizer.

    B batch, C image channels, H W image size, h w latent size, D latent width
"""
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqim.nn.context import Context
from vqim.nn.convolution import AttentionBlock, Conv2d, Downsample, GroupNorm, ResidualBlock, Upsample
from vqim.nn.layers import check_positive
from vqim.tokenizer.losses import unsqueeze
from vqim.tokenizer.model import Reconstruction


class CNNEncoder(nn.Module):
    """A level of residual blocks for every resolution, halved in between; attention at the lowest.

    It has no table of positions: any size that can be halved often enough is encoded.

    Args:
      channels: of the first convolution.
      multipliers: channels of each level, from the highest resolution, as multiples of `channels`; every level but
        the last ends by halving height and width.
      num_blocks: residual blocks a level.
      width: of the latents, 256 in all published models.
      dropout_rate: in residual blocks, 0.0 in the paper.
      num_channels: of the images.
    """

    def __init__(
        self, channels: int, multipliers: tuple[int, ...], num_blocks: int, width: int,
        dropout_rate: float = 0.0, num_channels: int = 3,
    ):
        super().__init__()
        check_sizes(channels, multipliers, num_blocks, width, num_channels)
        self.width, self.factor = width, 2 ** (len(multipliers) - 1)
        self.conv_in = Conv2d(num_channels, channels, kernel_size=3)
        self.levels = nn.ModuleList()
        num_inputs = channels
        for i, multiplier in enumerate(multipliers):
            num_outputs, is_last = channels * multiplier, i == len(multipliers) - 1
            resample = None if is_last else Downsample(num_outputs, num_outputs)
            self.levels.append(Level(num_inputs, num_outputs, num_blocks, is_last, resample, dropout_rate))
            num_inputs = num_outputs
        self.middle = Middle(num_inputs, dropout_rate)
        self.head = Head(num_inputs, width)

    def latent_size(self, image_size: int) -> tuple[int, int]:
        """(h, w)."""
        if image_size % self.factor:
            raise ValueError(f"image_size must be a multiple of {self.factor}, to be halved at every level but the "
                             f"last; got {image_size}")
        return image_size // self.factor, image_size // self.factor

    def forward(self, images_BCHW: Tensor, context: Context) -> Tensor:
        """Images in [0, 1] to latents [B, h, w, D]."""
        x_BCHW = self.conv_in(2 * images_BCHW - 1, context)
        for i, level in enumerate(self.levels):
            x_BCHW = level(x_BCHW, context.fold(f"level {i}"))
        x_BCHW = self.middle(x_BCHW, context.fold("middle"))
        return rearrange(self.head(x_BCHW, context), "b d h w -> b h w d")


class CNNDecoder(nn.Module):
    """The reverse: attention at the lowest resolution, levels of one more residual block each, doubled in between.

    Args:
      As `CNNEncoder`, `multipliers` too from the highest resolution; and
      logit_laplace: whether to give location and log scale of a logit-Laplace distribution for every value, as
        ViT-VQGAN's decoders do (Tables 1 and 4 have that distance for CNN-VQGAN too). VQGAN's own gives an image.
    """

    def __init__(
        self, channels: int, multipliers: tuple[int, ...], num_blocks: int, width: int,
        dropout_rate: float = 0.0, num_channels: int = 3, logit_laplace: bool = False,
    ):
        super().__init__()
        check_sizes(channels, multipliers, num_blocks, width, num_channels)
        self.width, self.logit_laplace = width, logit_laplace
        num_inputs = channels * multipliers[-1]
        self.conv_in = Conv2d(width, num_inputs, kernel_size=3)
        self.middle = Middle(num_inputs, dropout_rate)
        self.levels = nn.ModuleList()
        for i, multiplier in enumerate(reversed(multipliers)):
            num_outputs, is_last = channels * multiplier, i == len(multipliers) - 1
            resample = None if is_last else Upsample(num_outputs, num_outputs)
            self.levels.append(Level(num_inputs, num_outputs, num_blocks + 1, i == 0, resample, dropout_rate))
            num_inputs = num_outputs
        self.head = Head(num_inputs, num_channels * (2 if logit_laplace else 1))

    def forward(self, latents_BhwD: Tensor, context: Context) -> Reconstruction:
        """Vectors of codes [B, h, w, D] to images."""
        x_BCHW = self.conv_in(rearrange(latents_BhwD, "b h w d -> b d h w"), context)
        x_BCHW = self.middle(x_BCHW, context.fold("middle"))
        for i, level in enumerate(self.levels):
            x_BCHW = level(x_BCHW, context.fold(f"level {i}"))
        x_BCHW = self.head(x_BCHW, context).float()
        if not self.logit_laplace:
            return Reconstruction((x_BCHW + 1) / 2)
        location_BCHW, log_scale_BCHW = rearrange(x_BCHW, "b (s c) h w -> s b c h w", s=2)
        return Reconstruction(unsqueeze(torch.sigmoid(location_BCHW)), location_BCHW, log_scale_BCHW)


class Level(nn.Module):
    """Residual blocks of one resolution, each with attention after it or not, and a change of resolution.

    Args:
      num_inputs, num_outputs: channels before and after the first block.
      num_blocks: residual blocks.
      with_attention: whether an attention block follows each of them.
      resample: to the resolution of the next level; None stays.
      dropout_rate: of the residual blocks.
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, num_blocks: int, with_attention: bool,
        resample: Downsample | Upsample | None, dropout_rate: float,
    ):
        super().__init__()
        widths = [num_inputs, *[num_outputs] * num_blocks]
        self.blocks = nn.ModuleList(
            ResidualBlock(before, after, dropout_rate) for before, after in zip(widths, widths[1:], strict=False))
        self.attention = nn.ModuleList(AttentionBlock(num_outputs) for _ in range(num_blocks if with_attention else 0))
        self.resample = resample

    def forward(self, x_BCHW: Tensor, context: Context) -> Tensor:
        """[B, num_inputs, H, W] to [B, num_outputs, ...] of the next level's size."""
        for i, block in enumerate(self.blocks):
            x_BCHW = block(x_BCHW, context.fold(f"block {i}"))
            if self.attention:
                x_BCHW = self.attention[i](x_BCHW, context)
        return x_BCHW if self.resample is None else self.resample(x_BCHW, context)


class Middle(nn.Module):
    """A residual block, attention, a residual block."""

    def __init__(self, num_features: int, dropout_rate: float):
        super().__init__()
        self.block_1 = ResidualBlock(num_features, num_features, dropout_rate)
        self.attention = AttentionBlock(num_features)
        self.block_2 = ResidualBlock(num_features, num_features, dropout_rate)

    def forward(self, x_BCHW: Tensor, context: Context) -> Tensor:
        """[B, C, H, W] to the same."""
        x_BCHW = self.attention(self.block_1(x_BCHW, context.fold("block 1")), context)
        return self.block_2(x_BCHW, context.fold("block 2"))


class Head(nn.Module):
    """Normalisation, swish, and a convolution to what the network returns."""

    def __init__(self, num_inputs: int, num_outputs: int):
        super().__init__()
        self.norm = GroupNorm(num_inputs)
        self.conv = Conv2d(num_inputs, num_outputs, kernel_size=3)

    def forward(self, x_BCHW: Tensor, context: Context) -> Tensor:
        """[B, num_inputs, H, W] to [B, num_outputs, H, W]."""
        return self.conv(F.silu(self.norm(x_BCHW, context)), context)


def check_sizes(
    channels: int, multipliers: tuple[int, ...], num_blocks: int, width: int, num_channels: int,
) -> None:
    """Raises ValueError, naming the argument, unless all are positive."""
    check_positive(channels=channels, num_blocks=num_blocks, width=width, num_channels=num_channels)
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers must be whole numbers of at least 1, one for each level; got {multipliers}")
