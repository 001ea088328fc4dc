"""Checks images that a user passes, in any of several forms, and converts them to arrays.

    N images, H height, W width
"""
from typing import Any

import numpy as np
import torch
from PIL import Image

from vqim.data.decode import rgb_array


def to_image_arrays(images: Any, image_size: int) -> np.ndarray:
    """Converts images to uint8, or float32 in [0, 1], [N, H, W, 3] with H = W = `image_size`.

    Args:
      images: uint8 or floats in [0, 1]: an array [N, H, W, 3] or [H, W, 3], a tensor of these shapes or [N, 3, H, W] or
        [3, H, W], a PIL image, or a list of images.
      image_size: height and width that they must have.

    Raises:
      ValueError: the size, dtype, number of channels or range of values is wrong; the message says what was expected.
    """
    if isinstance(images, list | tuple):
        arrays = [to_image_arrays(image, image_size) for image in images]
        if not arrays or any(len(array) != 1 for array in arrays):
            raise ValueError("images: a list must hold single images, and at least one")
        return np.concatenate(arrays)
    expected = (f"images must be uint8, or floats in [0, 1], of {image_size}x{image_size} pixels with 3 channels "
                f"([N, {image_size}, {image_size}, 3])")
    if isinstance(images, Image.Image):
        images = rgb_array(images)
    is_tensor = isinstance(images, torch.Tensor)
    array = images.detach().cpu().numpy() if is_tensor else np.asarray(images)
    if array.ndim == 3:
        array = array[None]
    if is_tensor and array.ndim == 4 and array.shape[1:] == (3, image_size, image_size):
        array = array.transpose(0, 2, 3, 1)
    if array.shape[1:] != (image_size, image_size, 3):
        raise ValueError(f"{expected}; got {array.dtype} {list(array.shape)}. `prepare` cuts an image to this size")
    if not len(array):
        raise ValueError(f"{expected}; got no image")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise ValueError(f"{expected}; got {array.dtype}")
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise ValueError(f"{expected}; got floats from {array.min():.4g} to {array.max():.4g}. Divide by 255, or map "
                         "[-1, 1] to [0, 1]")
    return array.astype(np.float32)


def to_bytes(images_NHWC: np.ndarray) -> np.ndarray:
    """Images from `to_image_arrays` as uint8; floats are rounded."""
    return images_NHWC if images_NHWC.dtype == np.uint8 else np.rint(images_NHWC * 255).astype(np.uint8)


def to_rgb(image: Any) -> np.ndarray:
    """Converts one image of any size to uint8 [H, W, 3]: a PIL image, as `decode` does, or a grey or RGB array.

    Raises:
      ValueError: an array has another dtype or shape, or a PIL image has floats.
    """
    if isinstance(image, Image.Image):
        return rgb_array(image)
    array = np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"expected an image as uint8 [H, W, 3] or [H, W], got {array.dtype} {list(array.shape)}")
    return array
