"""Crop, resize and flip: from an image of any size to the square that a model needs.

Resampling is torchvision's bicubic with antialiasing on uint8. Random numbers come from the generator that is passed
in, which the loader keys by (seed, epoch, example).
"""
import dataclasses
import math
from typing import Protocol

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

NUM_ATTEMPTS = 10


class Transform(Protocol):
    """Brings one image to its final size."""

    def __call__(self, image_HWC: np.ndarray, image_size: int, rng: np.random.Generator) -> np.ndarray:
        """From uint8 [height, width, 3] to uint8 [image_size, image_size, 3]."""
        ...


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, scaled to the output size (the Inception crop), flipped half of the time.

    Attributes:
      scale: smallest and largest area of the part, as shares of the image's area.
      ratio: smallest and largest width / height of the part; log-uniform between them.
      flip_probability: probability of a left-right flip.
    """

    scale: tuple[float, float] = (0.8, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: expected (least, greatest) with 0 < least <= greatest <= 1, got {self.scale}")
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio: expected (least, greatest) with 0 < least <= greatest, got {self.ratio}")
        _check_probability(self.flip_probability)

    def __call__(self, image_HWC: np.ndarray, image_size: int, rng: np.random.Generator) -> np.ndarray:
        top, left, height, width = crop_box(image_HWC.shape[0], image_HWC.shape[1], self.scale, self.ratio, rng)
        part_HWC = image_HWC[top:top + height, left:left + width]
        return _random_flip(_resize(part_HWC, [image_size, image_size]), self.flip_probability, rng)


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A random square without distortion: scales the shorter side to the output size, and crops the longer side.

    VQGAN does the same (taming-transformers, taming/data/base.py: SmallestMaxSize, then RandomCrop). ADM
    (guided-diffusion, image_datasets.py: random_crop_arr) scales the shorter side to a random size, up to 1 / 0.8 of
    the output's, and crops both sides: `min_crop_fraction` 0.8.

    Attributes:
      min_crop_fraction: smallest side of the square as a share of the shorter side, in (0, 1]; sizes are drawn
        uniformly.
      flip_probability: probability of a left-right flip.
    """

    min_crop_fraction: float = 1.0
    flip_probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.min_crop_fraction <= 1:
            raise ValueError(f"min_crop_fraction: expected a number in (0, 1], got {self.min_crop_fraction}")
        _check_probability(self.flip_probability)

    def __call__(self, image_HWC: np.ndarray, image_size: int, rng: np.random.Generator) -> np.ndarray:
        largest = math.ceil(image_size / self.min_crop_fraction)
        scale = (image_size + int(rng.random() * (largest - image_size + 1))) / min(image_HWC.shape[:2])
        resized_HWC = _resize(image_HWC, [round(side * scale) for side in image_HWC.shape[:2]])
        top, left = (int(rng.random() * (side - image_size + 1)) for side in resized_HWC.shape[:2])
        return _random_flip(resized_HWC[top:top + image_size, left:left + image_size], self.flip_probability, rng)


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """Scales the shorter side to the output size, and keeps the middle of the longer side.

    Attributes:
      flip_probability: probability of a left-right flip; leave it at 0 for evaluation.
    """

    flip_probability: float = 0.0

    def __post_init__(self) -> None:
        _check_probability(self.flip_probability)

    def __call__(self, image_HWC: np.ndarray, image_size: int, rng: np.random.Generator) -> np.ndarray:
        height, width = image_HWC.shape[:2]
        shorter = min(height, width)
        resized_HWC = _resize(image_HWC, [height * image_size // shorter, width * image_size // shorter])
        top, left = (resized_HWC.shape[0] - image_size) // 2, (resized_HWC.shape[1] - image_size) // 2
        return _random_flip(resized_HWC[top:top + image_size, left:left + image_size], self.flip_probability, rng)


@dataclasses.dataclass(frozen=True)
class Resize:
    """Scales the whole image to the output size, without keeping its aspect ratio.

    Attributes:
      flip_probability: probability of a left-right flip; leave it at 0 for evaluation.
    """

    flip_probability: float = 0.0

    def __post_init__(self) -> None:
        _check_probability(self.flip_probability)

    def __call__(self, image_HWC: np.ndarray, image_size: int, rng: np.random.Generator) -> np.ndarray:
        return _random_flip(_resize(image_HWC, [image_size, image_size]), self.flip_probability, rng)


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draws the part of an image that `RandomResizedCrop` keeps.

    It draws area and shape until a part fits. After ten attempts it takes the largest middle part whose shape is within
    `ratio`, as torchvision does.

    Returns:
      (top, left, height, width) in pixels.
    """
    for _ in range(NUM_ATTEMPTS):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** rng.random()
        crop_height, crop_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top = int(rng.random() * (height - crop_height + 1))
            left = int(rng.random() * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_height = min(height, max(1, round(width / ratio[0])))
    crop_width = min(width, max(1, round(height * ratio[1])))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _resize(image_HWC: np.ndarray, size: list[int]) -> np.ndarray:
    image_CHW = torch.from_numpy(image_HWC).permute(2, 0, 1)
    resized_CHW = F.resize(image_CHW, size, InterpolationMode.BICUBIC, antialias=True)
    return resized_CHW.permute(1, 2, 0).numpy()


def _random_flip(image_HWC: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    return image_HWC[:, ::-1] if rng.random() < probability else image_HWC


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"flip_probability: expected a number from 0 to 1, got {probability}")
