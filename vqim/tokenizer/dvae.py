"""The encoder and decoder of DALL-E's discrete VAE: 'DALL-E dVAE' in ViT-VQGAN's Tables 3 and 7.

Ramesh et al. (2021), "Zero-Shot Text-to-Image Generation", appendix A.1 and A.2, and the published model
(github.com/openai/DALL-E): hidden 256, num_blocks 2, vocabulary 8192, width 128. Images of 256 pixels become 32 x 32
codes (f8). The encoder's latents are logits, one for each code. A Gumbel quantizer draws from them or takes the
largest. The decoder's first layer, a 1x1 convolution of a one-hot vector, is that quantizer's codebook.

    B batch, C image channels, H W image size, h w latent size, V vocabulary, D latent width
"""
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.nn.convolution import Conv2d, repeat_pixels
from vqim.nn.layers import check_positive
from vqim.state.init import Normal
from vqim.tokenizer.losses import floor_log_scale, map_pixels, unmap_pixels
from vqim.tokenizer.model import Codes, Reconstruction

MULTIPLIERS = (1, 2, 4, 8)
"""Channels of each group of blocks, from the highest resolution, as multiples of `hidden`."""
FACTOR = 2 ** (len(MULTIPLIERS) - 1)
ENCODER_KERNELS, DECODER_KERNELS = (3, 3, 3, 1), (1, 3, 3, 3)
"""Sizes of the kernels on a residual branch, in order."""


class DVAEEncoder(nn.Module):
    """A 7x7 convolution, groups of residual blocks with max pooling between them, and a logit for each code.

    Args:
      hidden: the number of channels in the first group.
      num_blocks: the number of residual blocks in a group.
      vocabulary: the number of codes.
      num_channels: the number of image channels.
    """

    def __init__(self, hidden: int, num_blocks: int, vocabulary: int, num_channels: int = 3):
        super().__init__()
        check_sizes(hidden, num_blocks)
        check_positive(vocabulary=vocabulary, num_channels=num_channels)
        self.width = vocabulary
        self.conv_in = convolution(num_channels, hidden, 7)
        self.groups = groups(hidden, [hidden * multiplier for multiplier in MULTIPLIERS], num_blocks, ENCODER_KERNELS)
        self.head = convolution(hidden * MULTIPLIERS[-1], vocabulary, 1)

    def latent_size(self, image_size: int) -> tuple[int, int]:
        """(h, w)."""
        if image_size % FACTOR:
            raise ValueError(f"image_size must be a multiple of {FACTOR}, got {image_size}")
        return image_size // FACTOR, image_size // FACTOR

    def forward(self, images_BCHW: Tensor, context: Context) -> Tensor:
        """Images in [0, 1] to logits [B, h, w, V]."""
        x_BCHW = self.conv_in(map_pixels(images_BCHW), context)
        for i, group in enumerate(self.groups):
            if i > 0:
                x_BCHW = F.max_pool2d(x_BCHW, kernel_size=2)
            x_BCHW = group(x_BCHW, context)
        return rearrange(self.head(F.relu(x_BCHW), context), "b v h w -> b h w v")


class DVAEDecoder(nn.Module):
    """The reverse of `DVAEEncoder`: groups of residual blocks with upsampling between them, and a logit-Laplace output.

    Args:
      hidden, num_blocks, num_channels: see `DVAEEncoder`.
      width: the width of the codebook's vectors.
    """

    def __init__(self, hidden: int, num_blocks: int, width: int, num_channels: int = 3):
        super().__init__()
        check_sizes(hidden, num_blocks)
        check_positive(width=width, num_channels=num_channels)
        self.width = width
        widths = [hidden * multiplier for multiplier in reversed(MULTIPLIERS)]
        self.groups = groups(width, widths, num_blocks, DECODER_KERNELS)
        self.head = convolution(hidden, 2 * num_channels, 1)

    def forward(self, codes: Codes, context: Context) -> Reconstruction:
        """Codes to images."""
        x_BCHW = rearrange(codes.latents_BhwD.to(context.dtype), "b h w d -> b d h w")
        for i, group in enumerate(self.groups):
            if i > 0:
                x_BCHW = repeat_pixels(x_BCHW)
            x_BCHW = group(x_BCHW, context)
        statistics = self.head(F.relu(x_BCHW), context).float()
        location_BCHW, log_scale_BCHW = rearrange(statistics, "b (s c) h w -> s b c h w", s=2)
        mean_BCHW = unmap_pixels(torch.sigmoid(location_BCHW))
        return Reconstruction(mean_BCHW, location_BCHW, floor_log_scale(log_scale_BCHW))

    def image_part(self, name: str, array: Tensor) -> Tensor:
        """The first half of the last convolution's outputs, which gives locations; other arrays unchanged."""
        return array.chunk(2)[0] if name.startswith("head/") else array


class BottleneckBlock(nn.Module):
    """x + gain * branch(x): four convolutions, each after a rectifier, in a quarter of the channels.

    Args:
      num_inputs: the number of input channels.
      num_outputs: the number of output channels; where it is different, the shortcut is a 1x1 convolution.
      kernel_sizes: the kernel sizes of the branch's four convolutions.
      gain: the factor for the branch, 1 / (number of blocks in the network)^2.
    """

    def __init__(self, num_inputs: int, num_outputs: int, kernel_sizes: tuple[int, ...], gain: float):
        super().__init__()
        bottleneck = num_outputs // 4
        widths = [num_inputs, bottleneck, bottleneck, bottleneck, num_outputs]
        self.gain = gain
        self.convs = nn.ModuleList(map(convolution, widths, widths[1:], kernel_sizes))
        self.shortcut = None if num_inputs == num_outputs else convolution(num_inputs, num_outputs, 1)

    def forward(self, x_BCHW: Tensor, context: Context) -> Tensor:
        """[B, num_inputs, H, W] to [B, num_outputs, H, W]."""
        branch_BCHW = x_BCHW
        for conv in self.convs:
            branch_BCHW = conv(F.relu(branch_BCHW), context)
        if self.shortcut is not None:
            x_BCHW = self.shortcut(x_BCHW, context)
        return x_BCHW + self.gain * branch_BCHW


class Group(nn.Module):
    """Blocks at one resolution; the first block changes the number of channels."""

    def __init__(self, num_inputs: int, num_outputs: int, num_blocks: int, kernel_sizes: tuple[int, ...], gain: float):
        super().__init__()
        self.blocks = nn.ModuleList(
            BottleneckBlock(num_outputs if i else num_inputs, num_outputs, kernel_sizes, gain)
            for i in range(num_blocks))

    def forward(self, x_BCHW: Tensor, context: Context) -> Tensor:
        """[B, num_inputs, H, W] to [B, num_outputs, H, W]."""
        for block in self.blocks:
            x_BCHW = block(x_BCHW, context)
        return x_BCHW


def groups(num_inputs: int, widths: list[int], num_blocks: int, kernel_sizes: tuple[int, ...]) -> nn.ModuleList:
    """One group for every resolution."""
    gain = (len(widths) * num_blocks) ** -2
    return nn.ModuleList(Group(before, after, num_blocks, kernel_sizes, gain)
                         for before, after in zip([num_inputs, *widths], widths, strict=False))


def convolution(num_inputs: int, num_outputs: int, kernel_size: int) -> Conv2d:
    """A convolution whose kernel starts from N(0, 1 / fan-in), as in the published model."""
    return Conv2d(num_inputs, num_outputs, kernel_size, init=Normal((num_inputs * kernel_size**2) ** -0.5))


def check_sizes(hidden: int, num_blocks: int) -> None:
    """Raises ValueError, naming the argument, unless there are blocks and `hidden` can be divided for bottlenecks."""
    check_positive(hidden=hidden, num_blocks=num_blocks)
    if hidden % 4:
        raise ValueError(f"hidden must be a multiple of 4, the channels of a bottleneck are a quarter; got {hidden}")
