"""Where launch.sample puts its images: a folder of PNG files, or one `.npz` file as ADM's evaluator takes samples.

Images are written as they come; memory does not grow with their number.

    H W image size, C image channels
"""
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from vqim.evaluation.statistics_files import ImagesFile
from vqim.registry.config import ConfigError
from vqim.training.summaries import image_grid

MAX_SHOWN = 256
"""The number of images that grid.png and compare.png show, the first ones."""

SAMPLE = re.compile(r"(\d{5,})_.*\.png")
"""The names of the files in a folder of samples, with their numbers."""


class Output(Protocol):
    """What takes the images of a call, each once and in any order.

    Attributes:
      path: the folder, or the file.
    """

    path: Path

    def shows_pair(self, number: int) -> bool:
        """Whether it wants this image by the prior's own decoder too, where another run's decoder makes it."""
        ...

    def add(self, number: int, image_HWC: np.ndarray, label: int, by_own_decoder_HWC: np.ndarray | None) -> None:
        """Takes image number `number`, of a class or -1; and the same tokens by the prior's own decoder, if asked."""
        ...

    def finish(self) -> None:
        """Completes what is there, once all images have come."""
        ...


class SampleFolder:
    """A folder with a PNG file for each image, `<number>_<class>.png`, and grid.png.

    Args:
      path: the folder; it is made.
      first: the number of the first image; older samples from this number on stand in the way. What shows several of
        them is made anew where samples with smaller numbers say that it is of launch.sample.
      class_names: the names of the classes, for the files' names.
      overwrite: whether such older samples are removed, or refused.
      writes: False for processes that have the same images as another one, which writes them.

    Raises:
      ConfigError: the path is a file, or there are older samples.
    """

    def __init__(self, path: Path, first: int, class_names: Sequence[str], overwrite: bool, writes: bool):
        self.path, self._first, self._names, self._writes = path, first, class_names, writes
        self._shown: dict[int, np.ndarray] = {}
        self._pairs: dict[int, np.ndarray] = {}
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--out must be a folder, or a file that ends in .npz; {path} is a file")
        numbers = {file: int(match[1]) for file in path.glob("*.png") if (match := SAMPLE.fullmatch(file.name))}
        older = [file for file, number in numbers.items() if number >= first]
        shown = [file for name in ("grid.png", "original.png", "compare.png") if (file := path / name).exists()]
        in_the_way = older if len(older) < len(numbers) else [*older, *shown]
        if in_the_way and not overwrite:
            raise ConfigError(f"--out must hold no older samples; {path} has {len(in_the_way)}. --overwrite removes "
                              "them")
        if writes:
            for file in [*older, *shown]:
                file.unlink()
            path.mkdir(parents=True, exist_ok=True)

    def shows_pair(self, number: int) -> bool:
        """See `Output`."""
        return number < self._first + MAX_SHOWN

    def add(self, number: int, image_HWC: np.ndarray, label: int, by_own_decoder_HWC: np.ndarray | None) -> None:
        """See `Output`."""
        if not self._writes:
            return
        word = self._names[label].replace(" ", "_").replace("/", "_") if label >= 0 else "any"
        Image.fromarray(image_HWC).save(self.path / f"{number:05d}_{word}.png")
        if number < self._first + MAX_SHOWN:
            self._shown[number] = image_HWC
            if by_own_decoder_HWC is not None:
                self._pairs[number] = np.concatenate([by_own_decoder_HWC, image_HWC])

    def finish(self) -> None:
        """See `Output`."""
        for name, images in (("grid.png", self._shown), ("compare.png", self._pairs)):
            if images:
                Image.fromarray(image_grid(np.stack([images[number] for number in sorted(images)]))).save(
                    self.path / name)


class SampleFile:
    """One file with all images and their classes (`vqim.evaluation.statistics_files.ImagesFile`).

    Args:
      path: the file, which ends in .npz.
      first: the number of the first image.
      labels_N: their classes.
      image_size: height and width of the images.
      overwrite: whether an older file is replaced, or refused.
      writes: see `SampleFolder`.

    Raises:
      ConfigError: there is an older file, or no folder for it.
    """

    def __init__(
        self, path: Path, first: int, labels_N: np.ndarray, image_size: int, overwrite: bool, writes: bool,
    ):
        self.path, self._first = path, first
        if path.exists() and not overwrite:
            raise ConfigError(f"--out: there is a file {path}; --overwrite replaces it")
        if writes and not path.absolute().parent.is_dir():
            raise ConfigError(f"--out: there is no folder for {path}; make it first")
        self._file = ImagesFile(path, image_size, labels_N) if writes else None

    def shows_pair(self, number: int) -> bool:
        """See `Output`."""
        return False

    def add(self, number: int, image_HWC: np.ndarray, label: int, by_own_decoder_HWC: np.ndarray | None) -> None:
        """See `Output`."""
        if self._file is not None:
            self._file.write(number - self._first, image_HWC)

    def finish(self) -> None:
        """See `Output`."""
        if self._file is not None:
            self._file.finish()
