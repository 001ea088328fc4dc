"""Decodes the bytes of an image file to an RGB array.

Plain JPEG files, the common case, are decoded by torchvision (libjpeg-turbo, about 1.4 times as fast as Pillow here,
equal pixels). Pillow decodes everything else.
"""
import io

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_jpeg


class CorruptImageError(ValueError):
    """The bytes are not an image that can be decoded."""


def decode(data: bytes) -> np.ndarray:
    """Decodes an image file to uint8 [height, width, 3].

    The image is turned upright by its EXIF orientation. Grey becomes three equal channels; transparent pixels are
    composited on white; palettes and CMYK become RGB. Of 16-bit samples the upper 8 bits are kept, and of an animation
    the first frame. Colour profiles are ignored.

    Raises:
      CorruptImageError: the bytes cannot be decoded; the message has the decoder's reason.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header only
            if image.format == "JPEG" and image.mode in ("L", "RGB"):
                encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                decoded_CHW = decode_jpeg(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)
                return decoded_CHW.permute(1, 2, 0).numpy()
            return rgb_array(image)
    except UnidentifiedImageError as error:
        raise CorruptImageError("not an image file of a known format") from error
    except Image.DecompressionBombError as error:
        raise CorruptImageError(f"larger than Pillow's limit of {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; scale it "
                                "down first") from error
    except Exception as error:  # decoders raise OSError, RuntimeError, SyntaxError, struct.error and more
        raise CorruptImageError(f"{type(error).__name__}: {error}") from error


def rgb_array(image: Image.Image) -> np.ndarray:
    """An image of any mode as uint8 [height, width, 3], as `decode` says.

    Raises:
      ValueError: its values are floats.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255. Mode I holds 16-bit values in 32 bits (16-bit PGM, some PNG and TIFF).
        grey = (np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point images have no defined range; convert to 8 or 16 bits first")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image.convert("RGB"))
