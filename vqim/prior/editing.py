"""Editing: a mask in pixels becomes one of tokens, and what an order of drawing allows.

    B images (N in all), H W image size, P positions, K codes a position, S = P K places
"""
from typing import Any

import numpy as np
from einops import rearrange, reduce, repeat

from vqim.contracts.grid import TokenGrid


def token_mask(mask_BHW: np.ndarray, grid: TokenGrid) -> np.ndarray:
    """Which tokens are to be drawn, bool [B, P, K]: those with a masked pixel in their cell, in every level.

    Raises:
      ValueError: a level does not divide the image into cells of whole pixels.
    """
    height, width = mask_BHW.shape[1:]
    parts = []
    for level in grid.levels:
        if height % level.height or width % level.width:
            raise ValueError(f"mask must have whole pixels for each of {level.height}x{level.width} tokens, got "
                             f"{height}x{width}")
        cells = {"p": height // level.height, "q": width // level.width}
        parts.append(reduce(mask_BHW, "b (h p) (w q) -> b (h w)", "max", **cells))
    return repeat(np.concatenate(parts, 1), "b p -> b p k", k=grid.num_channels)


def check_fillable(masked_BPK: np.ndarray, sampler: Any, num_levels: int = 1) -> None:
    """Raises ValueError unless the sampler can draw the masked tokens knowing all others.

    One that draws token after token knows only those before: what is kept must come first, and all after it be masked.
    With several levels, whose tokens follow one another, that is the whole image.
    """
    if getattr(sampler, "any_order", False):
        return
    masked_BS = rearrange(masked_BPK, "b p k -> b (p k)")
    later_BS = np.logical_or.accumulate(masked_BS, 1)
    if (later_BS & ~masked_BS).any():
        image = int((later_BS & ~masked_BS).any(1).argmax())
        first = int(masked_BS[image].argmax())
        kept = first + int((~masked_BS[image, first:]).argmax())
        remedy = "Mask the lower rows" if num_levels == 1 else "Mask the whole image, whose levels follow one another"
        raise ValueError(
            f"mask must reach from its first token to the end of the image: {type(sampler).__name__} draws row by row "
            f"and knows only what comes before, but token {kept} is to be kept after token {first} is drawn. "
            f"{remedy}, or take a masked prior, which fills any part (prior.MaskedSampler)")


def match(images_NHWC: np.ndarray, masks: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images, and masks as bools [N, H, W], one for each of `count` draws; a single one serves all of them.

    Raises:
      ValueError: the number of images, or a mask's shape or dtype is wrong, or a mask is empty.
    """
    mask = np.asarray(masks)
    mask_NHW = mask[None] if mask.ndim == 2 else mask
    size = images_NHWC.shape[1:3]
    if len(images_NHWC) not in (1, count):
        raise ValueError(f"images must be one, or one for each of {count} labels, got {len(images_NHWC)}")
    if mask_NHW.dtype != bool or mask_NHW.shape[1:] != size or len(mask_NHW) not in (1, count):
        raise ValueError(f"mask must be bools {list(size)}, True where pixels are to be drawn, or one such for "
                         f"each of {count} images; got {mask.dtype} {list(mask.shape)}")
    if not mask_NHW.any((1, 2)).all():
        raise ValueError("mask must be True for some pixels of every image: there is nothing to draw")
    return (np.broadcast_to(images_NHWC, (count, *images_NHWC.shape[1:])), np.broadcast_to(mask_NHW, (count, *size)))
