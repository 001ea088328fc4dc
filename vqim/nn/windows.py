"""Attention within the regions of an image, and between them: block-regional and dilated attention.

Zhao et al. (2021), "Improved Transformer for High-Resolution GANs", section 3.1. An image is cut into square regions.
Regional attention is among the positions of a region; dilated attention is among the positions that have the same place
in all regions. One after the other, they connect any two positions of the image.

    B batch, C channels, H W image size, R region's side, G H / R, T positions of a window
"""
from einops import rearrange
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.nn.attention import SelfAttention
from vqim.nn.convolution import GroupNorm, MakeNorm

_HEAD_SIZE = 64


class RegionalDilatedAttention(nn.Module):
    """x + regional attention(norm(x)), then the same with dilated attention; the identity before training.

    Each has four matrices [C, C], and heads of 64 channels (one head for fewer channels). There are no tables of
    positions: a decoder's convolutions see where they are by the padding.

    Args:
      num_features: the number of channels.
      norm: makes the normalisations.
    """

    def __init__(self, num_features: int, *, norm: MakeNorm = GroupNorm):
        super().__init__()
        num_heads = max(1, num_features // _HEAD_SIZE)
        self.regional_norm = norm(num_features)
        self.regional = SelfAttention(num_features, num_heads, causal=False)
        self.dilated_norm = norm(num_features)
        self.dilated = SelfAttention(num_features, num_heads, causal=False)

    def forward(self, x_BCHW: Tensor, context: Context, condition_BZhw: Tensor | None = None) -> Tensor:
        """[B, C, H, W] to the same shape; the normalisations use the condition."""
        height, width = x_BCHW.shape[2:]
        sizes = {"r": region_side(height), "s": region_side(width), "b": len(x_BCHW)}
        windows_BCHW = self.regional_norm(x_BCHW, context, condition_BZhw)
        windows_BTC = rearrange(windows_BCHW, "b c (g r) (h s) -> (b g h) (r s) c", **sizes)
        attended_BTC = self.regional(windows_BTC, context)
        x_BCHW = x_BCHW + rearrange(
            attended_BTC, "(b g h) (r s) c -> b c (g r) (h s)", g=height // sizes["r"], **sizes)
        windows_BCHW = self.dilated_norm(x_BCHW, context, condition_BZhw)
        windows_BTC = rearrange(windows_BCHW, "b c (g r) (h s) -> (b r s) (g h) c", **sizes)
        attended_BTC = self.dilated(windows_BTC, context)
        return x_BCHW + rearrange(
            attended_BTC, "(b r s) (g h) c -> b c (g r) (h s)", g=height // sizes["r"], **sizes)


def region_side(size: int) -> int:
    """The side of regions in an image of this size: the smallest divisor whose square is at least the size.

    So a region has about as many positions as there are regions. The published code (HiT-GAN, models/generators.py) has
    the same at its sizes: 4, 4, 8 and 8 for 8, 16, 32 and 64.
    """
    return next(side for side in range(1, size + 1) if size % side == 0 and side * side >= size)
