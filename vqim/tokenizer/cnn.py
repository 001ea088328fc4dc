"""VQGAN's convolutional encoder and decoder: 'CNN-VQGAN' in ViT-VQGAN's Tables 1, 4 and 7.

Esser et al. (2021), "Taming Transformers for High-Resolution Image Synthesis", Table 7. The published models are

    f16: channels 128, multipliers (1, 1, 2, 2, 4), num_blocks 2, width 256
    f8: channels 128, multipliers (1, 1, 2, 4), the same otherwise

ViT-VQGAN's 'channels x2' has 256 channels instead of 128. VQGAN's quant_conv and post_quant_conv, 1x1 convolutions
before and after the codes, are here the projections in the quantizer.

    B batch, C image channels, H W image size, h w latent size, D latent width
"""
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.nn.convolution import (
    AttentionBlock,
    Conv2d,
    Downsample,
    GroupNorm,
    MakeAttention,
    MakeNorm,
    ResidualBlock,
    Upsample,
)
from vqim.nn.layers import check_positive
from vqim.tokenizer.losses import floor_log_scale, unmap_pixels
from vqim.tokenizer.model import Codes, Reconstruction


class CNNEncoder(nn.Module):
    """A level of residual blocks for every resolution, which is halved in between; attention at the lowest resolution.

    It has no table of positions, so it can encode any size that can be halved often enough.

    Args:
      channels: the number of channels after the first convolution.
      multipliers: the channels in each level, from the highest resolution on, as multiples of `channels`. Every level
        except the last ends by halving height and width.
      num_blocks: the number of residual blocks in a level.
      width: the width of the latents, 256 in all published models.
      dropout_rate: the dropout rate in residual blocks, 0.0 in the paper.
      num_channels: the number of image channels.
      norm: makes a normalisation for a number of channels.
      attention: makes an attention block, used at the lowest resolution after each residual block and in the middle;
        None for no attention.
    """

    def __init__(
        self, channels: int, multipliers: tuple[int, ...], num_blocks: int, width: int,
        dropout_rate: float = 0.0, num_channels: int = 3, norm: MakeNorm = GroupNorm,
        attention: MakeAttention | None = AttentionBlock,
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
            self.levels.append(Stage(num_inputs, num_outputs, num_blocks, resample, dropout_rate, norm,
                                     attention if is_last else None))
            num_inputs = num_outputs
        self.middle = Middle(num_inputs, dropout_rate, norm, attention)
        self.head = Head(num_inputs, width, norm)

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
    """The reverse of `CNNEncoder`, with one more residual block in each level; the resolution doubles between levels.

    Args:
      As for `CNNEncoder`, with `multipliers` also from the highest resolution on, and:
      norm: gets also the codes' vectors, [B, Z, h, w], as its condition, in every block.
      logit_laplace: whether to return location and log scale of a logit-Laplace distribution for every value, like
        ViT-VQGAN's decoders (Tables 1 and 4 report that distance also for CNN-VQGAN). VQGAN's decoder returns an image.
    """

    def __init__(
        self, channels: int, multipliers: tuple[int, ...], num_blocks: int, width: int,
        dropout_rate: float = 0.0, num_channels: int = 3, logit_laplace: bool = False, norm: MakeNorm = GroupNorm,
        attention: MakeAttention | None = AttentionBlock,
    ):
        super().__init__()
        check_sizes(channels, multipliers, num_blocks, width, num_channels)
        self.width, self.logit_laplace = width, logit_laplace
        num_inputs = channels * multipliers[-1]
        self.conv_in = Conv2d(width, num_inputs, kernel_size=3)
        self.middle = Middle(num_inputs, dropout_rate, norm, attention)
        self.levels = nn.ModuleList()
        for i, multiplier in enumerate(reversed(multipliers)):
            num_outputs, is_last = channels * multiplier, i == len(multipliers) - 1
            resample = None if is_last else Upsample(num_outputs, num_outputs)
            self.levels.append(Stage(num_inputs, num_outputs, num_blocks + 1, resample, dropout_rate, norm,
                                     attention if i == 0 else None))
            num_inputs = num_outputs
        self.head = Head(num_inputs, num_channels * (2 if logit_laplace else 1), norm)

    def forward(self, codes: Codes, context: Context) -> Reconstruction:
        """Codes to images."""
        condition_BZhw = rearrange(codes.vectors_BhwZ, "b h w z -> b z h w")
        x_BCHW = self.conv_in(rearrange(codes.latents_BhwD, "b h w d -> b d h w"), context)
        x_BCHW = self.middle(x_BCHW, context.fold("middle"), condition_BZhw)
        for i, level in enumerate(self.levels):
            x_BCHW = level(x_BCHW, context.fold(f"level {i}"), condition_BZhw)
        x_BCHW = self.head(x_BCHW, context, condition_BZhw).float()
        if not self.logit_laplace:
            return Reconstruction((x_BCHW + 1) / 2)
        location_BCHW, log_scale_BCHW = rearrange(x_BCHW, "b (s c) h w -> s b c h w", s=2)
        mean_BCHW = unmap_pixels(torch.sigmoid(location_BCHW))
        return Reconstruction(mean_BCHW, location_BCHW, floor_log_scale(log_scale_BCHW))

    def image_part(self, name: str, array: Tensor) -> Tensor:
        """The first half of the last convolution's outputs if they give a distribution; other arrays unchanged."""
        return array.chunk(2)[0] if self.logit_laplace and name.startswith("head/conv/") else array


class Stage(nn.Module):
    """Residual blocks at one resolution, optionally each followed by attention, and a change of resolution.

    Args:
      num_inputs: the number of channels before the first block.
      num_outputs: the number of channels after the first block.
      num_blocks: the number of residual blocks.
      resample: changes to the resolution of the next level; None keeps the resolution.
      dropout_rate: the dropout rate in residual blocks.
      norm: makes the blocks' normalisations.
      attention: makes the attention block after each residual block; None for no attention.
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, num_blocks: int, resample: Downsample | Upsample | None,
        dropout_rate: float, norm: MakeNorm, attention: MakeAttention | None,
    ):
        super().__init__()
        widths = [num_inputs, *[num_outputs] * num_blocks]
        self.blocks = nn.ModuleList(
            ResidualBlock(before, after, dropout_rate, norm)
            for before, after in zip(widths, widths[1:], strict=False))
        self.attention = nn.ModuleList(
            attention(num_outputs, norm=norm) for _ in range(num_blocks) if attention is not None)
        self.resample = resample

    def forward(self, x_BCHW: Tensor, context: Context, condition_BZhw: Tensor | None = None) -> Tensor:
        """[B, num_inputs, H, W] to [B, num_outputs, ...] at the next level's size."""
        for i, block in enumerate(self.blocks):
            x_BCHW = block(x_BCHW, context.fold(f"block {i}"), condition_BZhw)
            if self.attention:
                x_BCHW = self.attention[i](x_BCHW, context, condition_BZhw)
        return x_BCHW if self.resample is None else self.resample(x_BCHW, context)


class Middle(nn.Module):
    """A residual block, optionally attention, and a residual block."""

    def __init__(self, num_features: int, dropout_rate: float, norm: MakeNorm, attention: MakeAttention | None):
        super().__init__()
        self.block_1 = ResidualBlock(num_features, num_features, dropout_rate, norm)
        self.attention = None if attention is None else attention(num_features, norm=norm)
        self.block_2 = ResidualBlock(num_features, num_features, dropout_rate, norm)

    def forward(self, x_BCHW: Tensor, context: Context, condition_BZhw: Tensor | None = None) -> Tensor:
        """[B, C, H, W] to the same shape."""
        x_BCHW = self.block_1(x_BCHW, context.fold("block 1"), condition_BZhw)
        if self.attention is not None:
            x_BCHW = self.attention(x_BCHW, context, condition_BZhw)
        return self.block_2(x_BCHW, context.fold("block 2"), condition_BZhw)


class Head(nn.Module):
    """Normalisation, swish, and a convolution to the network's output."""

    def __init__(self, num_inputs: int, num_outputs: int, norm: MakeNorm):
        super().__init__()
        self.norm = norm(num_inputs)
        self.conv = Conv2d(num_inputs, num_outputs, kernel_size=3)

    def forward(self, x_BCHW: Tensor, context: Context, condition_BZhw: Tensor | None = None) -> Tensor:
        """[B, num_inputs, H, W] to [B, num_outputs, H, W]."""
        return self.conv(F.silu(self.norm(x_BCHW, context, condition_BZhw)), context)


def check_sizes(
    channels: int, multipliers: tuple[int, ...], num_blocks: int, width: int, num_channels: int,
) -> None:
    """Raises ValueError, naming the argument, unless all are positive."""
    check_positive(channels=channels, num_blocks=num_blocks, width=width, num_channels=num_channels)
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers must be whole numbers of at least 1, one for each level; got {multipliers}")
