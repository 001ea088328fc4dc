"""Sets of images as users have them: a folder of files, or an `.npz` file as ADM's evaluator takes it.

    B batch, H W image size
"""
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vqim.data.decode import CorruptImageError, decode
from vqim.data.folder import EXTENSIONS
from vqim.data.transforms import CenterCrop
from vqim.evaluation.statistics_files import read_images


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images of one size, read when they are needed.

    Attributes:
      name: its path.
      names: what messages call the images.
      read: image number i, uint8 [height, width, 3], as it is stored.
      image_size: height and width, after a crop.
      target: the size of the crop; None for none.
      batch_size: images at a time.
    """

    name: str
    names: list[str]
    read: Callable[[int], np.ndarray]
    image_size: tuple[int, int]
    target: int | None
    batch_size: int

    def __len__(self) -> int:
        return len(self.names)

    @property
    def crop(self) -> str:
        """What was done to the images, for a protocol."""
        return f"middle square, to {self.target}" if self.target else "none"

    def batches(self) -> Iterator[np.ndarray]:
        """All images in order; ValueError if one has another size than the first."""
        for start in range(0, len(self), self.batch_size):
            yield np.stack([self._image(i) for i in range(start, min(start + self.batch_size, len(self)))])

    def _image(self, i: int) -> np.ndarray:
        image_HWC = _cropped(self.read(i), self.target)
        if image_HWC.shape[:2] != self.image_size:
            raise ValueError(
                f"{self.name}: images must have one size; {self.names[0]} has {_size(self.image_size)}, "
                f"{self.names[i]} {_size(image_HWC.shape[:2])}. Give --image_size, which crops and scales all")
        return image_HWC


def open_images(
    path: str, target: int | None, batch_size: int, named: re.Pattern[str] | None = None,
) -> ImageSet:
    """The images of a folder and its subfolders, or of an `.npz` file.

    Args:
      path: the folder or file.
      target: crops the middle square of each image and scales it to this size; None leaves the images as they are.
      batch_size: images at a time.
      named: in a folder, only files with such names; None takes all.

    Raises:
      ValueError: there is no image, or no such path.
    """
    if Path(path).is_dir():
        files = sorted(file for file in Path(path).rglob("*") if file.suffix.lower() in EXTENSIONS
                       and (named is None or named.fullmatch(file.name)))
        names = [str(file) for file in files]

        def read(i: int) -> np.ndarray:
            try:
                return decode(files[i].read_bytes())
            except CorruptImageError as error:
                raise ValueError(f"{files[i]} cannot be decoded: {error}") from error
    elif path.endswith(".npz"):
        images_BHWC = read_images(path)
        names = [f"image {i}" for i in range(len(images_BHWC))]

        def read(i: int) -> np.ndarray:
            image_HWC: np.ndarray = images_BHWC[i]
            return image_HWC
    else:
        raise ValueError(f"{path}: expected a folder of images or an .npz file, there is "
                         f"{'another file' if Path(path).exists() else 'none'}")
    if not names:
        raise ValueError(f"{path}: there is no image in it ({', '.join(sorted(EXTENSIONS))})")
    first = _cropped(read(0), target).shape
    return ImageSet(path, names, read, (first[0], first[1]), target, batch_size)


def _cropped(image_HWC: np.ndarray, target: int | None) -> np.ndarray:
    return image_HWC if target is None else CenterCrop()(image_HWC, target, np.random.default_rng(0))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
