"""Cuts an image into horizontal strips that are treated as images, each with some rows from its neighbours.

    B batch, S strips of each image, N = B S, C channels, H W image size, R rows of a strip
"""
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def cut_strips(x_BCHW: Tensor, num_strips: int, num_rows: int) -> Tensor:
    """Strips with `num_rows` more rows above and below, zeros where the image ends: [N, C, H/S + 2 num_rows, W]."""
    height = x_BCHW.shape[2] // num_strips
    x_BCHW = F.pad(x_BCHW, (0, 0, num_rows, num_rows))
    strips = [x_BCHW[:, :, first:first + height + 2 * num_rows] for first in range(0, num_strips * height, height)]
    return rearrange(strips, "s b c h w -> (b s) c h w")


def add_neighbours(x_NCRW: Tensor, num_strips: int, num_rows: int) -> Tensor:
    """Adds the rows from neighbouring strips, as `cut_strips` does; strips need at least `num_rows` rows."""
    x_BSCRW = rearrange(x_NCRW, "(b s) c r w -> b s c r w", s=num_strips)
    above = F.pad(x_BSCRW[:, :-1, :, -num_rows:], (0, 0, 0, 0, 0, 0, 1, 0))
    below = F.pad(x_BSCRW[:, 1:, :, :num_rows], (0, 0, 0, 0, 0, 0, 0, 1))
    return rearrange(torch.cat([above, x_BSCRW, below], dim=3), "b s c r w -> (b s) c r w")


def join_strips(x_NCRW: Tensor, num_strips: int) -> Tensor:
    """Joins strips to whole images: [B, C, S R, W]."""
    return rearrange(x_NCRW, "(b s) c r w -> b c (s r) w", s=num_strips)


def zero_outside(x_NCRW: Tensor, num_strips: int, num_rows: int) -> Tensor:
    """Sets to zero those of the `num_rows` rows above and below each strip that lie outside the image."""
    height = num_strips * (x_NCRW.shape[2] - 2 * num_rows)
    ones_11H1 = torch.ones((1, 1, height, 1), dtype=x_NCRW.dtype, device=x_NCRW.device)
    inside_SCRW = cut_strips(ones_11H1, num_strips, num_rows)
    x_BSCRW = rearrange(x_NCRW, "(b s) c r w -> b s c r w", s=num_strips) * inside_SCRW
    return rearrange(x_BSCRW, "b s c r w -> (b s) c r w")
