"""Convolutions between pixels and 2x2 blocks of pixels.

A convolution with stride 2 equals one with stride 1 over blocks, with four times the channels at half the height and
width. Values and FLOPs are the same. But its gradient needs no image with zeros between the pixels, which a TPU would
multiply like all others; and a few channels become enough to fill its 128x128 matrix unit.

    B batch, C channels, H W image size, h w = H/2 W/2 (or one more, see `shift_blocks`); O I output and
    input channels of a kernel; a block's channels are (row, column, channel), 4C
"""
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def space_to_depth(x_BCHW: Tensor) -> Tensor:
    """2x2 pixels become one position: [B, C, H, W] to [B, 4C, h, w].

    In the same way, a kernel [O, I, even, even] of stride 2 becomes a kernel over blocks, [O, 4I, ...].
    """
    return rearrange(x_BCHW, "b c (h p) (w q) -> b (p q c) h w", p=2, q=2)


def shift_blocks(x_BCHW: Tensor) -> Tensor:
    """Blocks that begin one pixel above and left of the image, with zeros around it: [B, 4C, H/2 + 1, W/2 + 1].

    For the four pixels of a block in the image, a 3x3 kernel sees two by two of these blocks.
    """
    return shift_columns(F.pad(x_BCHW, (0, 0, 1, 1)))


def shift_columns(x_BCHW: Tensor) -> Tensor:
    """As `shift_blocks`, for an image whose rows are already shifted: [B, 4C, H/2, W/2 + 1]."""
    return space_to_depth(F.pad(x_BCHW, (1, 1, 0, 0)))


def convolve_halving(x_BCHW: Tensor, kernel_OIHW: Tensor) -> Tensor:
    """A convolution of stride 2 with a 4x4 kernel and one zero around the image: [B, I, H, W] to [B, O, h, w]."""
    return F.conv2d(shift_blocks(x_BCHW), space_to_depth(kernel_OIHW))


def from_blocks_to_blocks(kernel_OIHW: Tensor) -> Tensor:
    """A 3x3 kernel over pixels as a 2x2 kernel from shifted blocks to blocks: [O, I, 3, 3] to [4O, 4I, 2, 2]."""
    return rearrange(
        [space_to_depth(kernel) for kernel in _shifted(kernel_OIHW)], "pixel o i h w -> (pixel o) i h w")


def within_blocks(kernel_OI11: Tensor) -> Tensor:
    """A 1x1 kernel over pixels as one over blocks, shifted or not: [O, I, 1, 1] to [4O, 4I, 1, 1]."""
    num_inputs = kernel_OI11.shape[1]
    return torch.cat([F.pad(kernel_OI11, (0, 0, 0, 0, pixel * num_inputs, (3 - pixel) * num_inputs))
                      for pixel in range(4)])


def _shifted(kernel_OIHW: Tensor) -> list[Tensor]:
    """The kernel as each of a block's four pixels applies it, in a window that has room for all of them."""
    return [F.pad(kernel_OIHW, (q, 1 - q, p, 1 - p)) for p in (0, 1) for q in (0, 1)]
