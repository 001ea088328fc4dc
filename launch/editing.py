"""The flags of launch.sample by which a part of an image is drawn: inpainting, outpainting, another class in a box.

    H W image size
"""
import dataclasses
import re
from typing import Any

import numpy as np
from absl import flags as absl_flags
from PIL import Image, ImageOps

from vqim.prior.editing import check_fillable, match, token_mask
from vqim.registry.config import ConfigError
from vqim.trained import Trained

from . import flags

IMAGE = absl_flags.DEFINE_string("image", None, "An image of which the part under --mask is drawn.")
MASK = absl_flags.DEFINE_string("mask", None, "An image, white where to draw, or a box: left,top,right,bottom.")
PASTE = absl_flags.DEFINE_bool(
    "paste", True, "Unmasked pixels are the image's own; --nopaste leaves what the decoder makes of its tokens.")


@dataclasses.dataclass(frozen=True)
class Edit:
    """An image of which a part is to be drawn.

    Attributes:
      image_HWC: uint8, as the run's evaluation sees it.
      mask_HW: bools, True where pixels are to be drawn.
    """

    image_HWC: np.ndarray
    mask_HW: np.ndarray

    def draw(self, run: Trained, labels: list[int], **settings: Any) -> np.ndarray:
        """The image with its part drawn, for each label: uint8 [B, H, W, 3]."""
        return run.edit(self.image_HWC, self.mask_HW, labels, paste=PASTE.value, **settings)

    def note(self) -> str:
        """Where the pixels outside of the mask come from."""
        return ("Pixels that are not masked are the image's own." if PASTE.value else
                "Pixels that are not masked are what the decoder makes of the image's own tokens.")


def read_edit(run: Trained) -> Edit | None:
    """The edit that the flags ask for; None without.

    Raises:
      ConfigError: a flag is missing, a file is no image, the two have different sizes, or the mask cannot be filled.
    """
    if IMAGE.value is None and MASK.value is None:
        return None
    if IMAGE.value is None or MASK.value is None:
        raise ConfigError("--image and --mask belong together: which image, and which part of it is to be drawn")
    size = run.tokenizer.image_size
    image = open_image(IMAGE)
    try:
        image_HWC = run.prepare(image)
        if re.fullmatch(r"[\d, ]+", MASK.value):
            mask_HW = box_mask(MASK.value, size)
        else:
            mask = open_image(MASK)
            if mask.size != image.size:
                raise ValueError(f"mask must have the image's size, {image.size[0]}x{image.size[1]} pixels, got "
                                 f"{mask.size[0]}x{mask.size[1]}")
            mask_HW = run.prepare(mask.convert("L"))[..., 0] >= 128
        _, mask_1HW = match(image_HWC[None], mask_HW, 1)
        grid = run.tokenizer.grid
        check_fillable(token_mask(mask_1HW, grid), run.prior.sampler, len(grid.levels))
    except ValueError as error:
        raise ConfigError(f"--image, --mask: {error}") from error
    return Edit(image_HWC, mask_HW)


def open_image(flag: absl_flags.FlagHolder[str | None]) -> Image.Image:
    """A flag's image file, upright; ConfigError where there is none."""
    path = flags.path(flag)
    assert path is not None
    try:
        return ImageOps.exif_transpose(Image.open(path))
    except (OSError, SyntaxError) as error:
        raise ConfigError(f"--{flag.name} must be an image file, got {path}: {error}") from error


def box_mask(text: str, size: int) -> np.ndarray:
    """Bools [size, size], True in a box "left,top,right,bottom" of pixels; right and bottom lie outside of it."""
    numbers = [int(word) for word in text.replace(" ", "").split(",") if word]
    if len(numbers) != 4 or not (numbers[0] < numbers[2] <= size and numbers[1] < numbers[3] <= size):
        raise ValueError(f"mask must be an image file, or a box left,top,right,bottom within {size}x{size} pixels, "
                         f"got {text}")
    left, top, right, bottom = numbers
    mask_HW = np.zeros((size, size), bool)
    mask_HW[top:bottom, left:right] = True
    return mask_HW
