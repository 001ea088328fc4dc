"""Sources of images: their protocol, and the sources that keep all images in memory."""
import dataclasses
import gzip
import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from vqim.data.faults import WrongExampleError
from vqim.third_party.noto_emoji import find_dataset

SPLITS = ("train", "validation")

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One image.

    Attributes:
      image: uint8 [height, width, 3], or the bytes of an image file.
      label: index of its class; -1 if the source has no classes.
      name: its name in messages, such as its path.
    """

    image: np.ndarray | bytes
    label: int
    name: str


class Source(Protocol):
    """One split of a data set, with random access. `source[i]` may be called from several threads at once."""

    class_names: tuple[str, ...]
    """Name of each class; empty where images have no labels."""

    # A source may also have `fingerprint() -> str`, which changes when its examples do, and `ignored`, what there is
    # beside them and is left out: {description: count}.

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


class SourceFactory(Protocol):
    """Opens one split, `"train"` or `"validation"`: a source's class with its other arguments bound."""

    def __call__(self, *, split: str) -> Source: ...


class Arrays:
    """An .npz file with all images as one array, kept in memory.

    The file holds `images` uint8 [N, H, W, 3] (or [N, H, W], grey), `labels` integers [N] that index
    `class_names` str [num_classes], and `is_validation` bool [N].
    """

    def __init__(self, path: str | os.PathLike[str], split: str):
        """Reads one split of the file.

        Args:
          path: the path of the .npz file.
          split: "train" or "validation".

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is not an .npz, an array is missing or has a wrong shape or type, a label is out of
            range, or the split has no images.
        """
        check_split(split)
        path = existing_file(path)
        arrays = _load_npz(path)
        images, labels, is_validation = arrays["images"], arrays["labels"], arrays["is_validation"]
        if images.dtype != np.uint8 or not (images.ndim == 3 or images.ndim == 4 and images.shape[3] == 3):
            raise ValueError(f"{path}: expected `images` uint8 [N, H, W, 3] or [N, H, W], "
                             f"got {images.dtype} {list(images.shape)}")
        for name, array, kinds in (("labels", labels, "iu"), ("is_validation", is_validation, "b")):
            if array.shape != images.shape[:1] or array.dtype.kind not in kinds:
                wanted = "integers" if kinds == "iu" else "bool"
                raise ValueError(f"{path}: expected `{name}` {wanted} [{len(images)}], one for each image, "
                                 f"got {array.dtype} {list(array.shape)}")
        self.class_names = tuple(str(name) for name in arrays["class_names"])
        check_labels(labels, len(self.class_names), path)
        self._records = np.flatnonzero(is_validation == (split == "validation"))
        if not len(self._records):
            raise ValueError(f"{path}: no image is in the {split} split, by its array `is_validation`")
        self._images = images[self._records]
        self._labels = labels[self._records]
        self._file_name = path.name

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        return Example(grey_to_rgb(self._images[index]), int(self._labels[index]),
                       f"{self._file_name}[{self._records[index]}]")

    def fingerprint(self) -> str:
        """A hash of all images and labels."""
        return fingerprint_of(self._images, self._labels)


class Emoji(Arrays):
    """The data set that ships with vqim: 1,892 Noto Emoji images, 64x64 on white, nine classes, 20% validation."""

    def __init__(self, split: str):
        """Reads one split, "train" or "validation"."""
        super().__init__(find_dataset(), split)


class Idx:
    """A pair of IDX files with grey images and labels, the format of MNIST and Fashion-MNIST; kept in memory.

    The training split is `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, the validation split
    `t10k-images-...` and `t10k-labels-...`, each gzipped (`.gz`) or not.
    """

    def __init__(self, path: str | os.PathLike[str], split: str, class_names: Sequence[str] = FASHION_MNIST_CLASSES):
        """Reads one split.

        Args:
          path: the folder with the files.
          split: "train" or "validation".
          class_names: names of the classes 0, 1, ...; by default Fashion-MNIST's.

        Raises:
          FileNotFoundError: the folder or a file is missing.
          ValueError: a file is not IDX or is truncated, the two have different lengths, or a label is out of range.
        """
        check_split(split)
        folder = existing_folder(path)
        stem = {"train": "train", "validation": "t10k"}[split]
        images_path = _idx_file(folder, f"{stem}-images-idx3-ubyte")
        labels_path = _idx_file(folder, f"{stem}-labels-idx1-ubyte")
        self._images = _read_idx(images_path, num_dims=3)
        self._labels = _read_idx(labels_path, num_dims=1)
        if not len(self._images):
            raise ValueError(f"{images_path}: holds no images")
        if len(self._images) != len(self._labels):
            raise ValueError(f"{images_path} has {len(self._images)} images but {labels_path} has "
                             f"{len(self._labels)} labels; they must come from the same set")
        self.class_names = tuple(class_names)
        check_labels(self._labels, len(self.class_names), labels_path)
        self._file_name = images_path.name

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        return Example(grey_to_rgb(self._images[index]), int(self._labels[index]), f"{self._file_name}[{index}]")

    def fingerprint(self) -> str:
        """A hash of all images and labels."""
        return fingerprint_of(self._images, self._labels)


def fingerprint_of(*arrays: np.ndarray) -> str:
    """A hash of the values of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def check_example(example: Example, num_classes: int) -> None:
    """Raises WrongExampleError unless an example is an image, as bytes or RGB array, with a label of the classes."""
    image, label = example.image, example.label
    if not isinstance(image, bytes) and not (
            isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            and image.size):
        if isinstance(image, np.ndarray):
            values = f" with values from {image.min():.4g} to {image.max():.4g}" if image.size else ""
            got = f"{image.dtype} {list(image.shape)}{values}"
        else:
            got = type(image).__name__
        raise WrongExampleError(f"example {example.name} must have an image uint8 [H, W, 3] with values from 0 to 255, "
                                f"or the bytes of an image file; got {got}")
    wanted = f"a label from 0 to {num_classes - 1}" if num_classes else "the label -1, since the source has no classes"
    is_number = isinstance(label, int | np.integer) and not isinstance(label, bool)
    if not is_number or not (0 <= label < num_classes if num_classes else label == -1):
        raise WrongExampleError(f"example {example.name} must have {wanted}; got {label!r}")


def counted_classes(num_classes: int) -> str:
    """Their number in words of a message."""
    return {0: "no classes", 1: "1 class"}.get(num_classes, f"{num_classes} classes")


def check_split(split: str) -> None:
    """Raises ValueError unless `split` is a split that sources have."""
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}; got {split!r}")


def check_labels(labels: np.ndarray, num_classes: int, path: Path) -> None:
    """Raises ValueError if a label does not index one of the classes."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise ValueError(f"{path}: expected labels from 0 to {num_classes - 1}, one for each of {num_classes} class "
                         f"names, but label {wrong[0]} is {labels[wrong[0]]} ({len(wrong)} of {len(labels)} are out "
                         "of range). Correct the labels or give all class names.")


def existing_file(path: str | os.PathLike[str]) -> Path:
    """Returns `path` if a file is there; else raises FileNotFoundError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: expected a file, but {str(path)!r} " + _what_is_there(Path(path)))
    return Path(path)


def existing_folder(path: str | os.PathLike[str]) -> Path:
    """Returns `path` if a folder is there; else raises FileNotFoundError."""
    if not Path(path).is_dir():
        raise FileNotFoundError(f"path: expected a folder, but {str(path)!r} " + _what_is_there(Path(path)))
    return Path(path)


def grey_to_rgb(image: np.ndarray) -> np.ndarray:
    """[H, W] becomes [H, W, 3] with three equal channels; [H, W, 3] does not change."""
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def _what_is_there(path: Path) -> str:
    if path.is_dir():
        return "is a folder"
    return "is a file" if path.exists() else "does not exist"


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    names = ("images", "labels", "class_names", "is_validation")
    try:
        with np.load(path) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            missing = [name for name in names if name not in archive]
            if missing:
                raise ValueError(f"it has no array {', '.join(missing)}; it has {', '.join(archive.files)}")
            return {name: archive[name] for name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected an .npz file with the arrays {', '.join(names)}: {error}") from error


def _idx_file(folder: Path, name: str) -> Path:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{folder}: expected the file {name}.gz or {name}, found neither")


def _read_idx(path: Path, num_dims: int) -> np.ndarray:
    """Reads a file of unsigned bytes: magic 0, 0, 8, number of dimensions; big-endian int32 sizes; the values."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error}); download it again") from error
    magic = bytes([0, 0, 8, num_dims])
    if data[:4] != magic:
        raise ValueError(f"{path}: expected an IDX file of unsigned bytes with {num_dims} dimensions "
                         f"(first bytes {magic.hex()}), got first bytes {data[:4].hex()}")
    start = 4 + 4 * num_dims
    shape = np.frombuffer(data[4:start].ljust(4 * num_dims, b"\0"), ">i4").astype(np.int64)
    if len(data) != start + shape.prod():
        raise ValueError(f"{path}: its header promises {start + shape.prod()} bytes but it has {len(data)}; "
                         "it is truncated or damaged, download it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
