"""Statistics of sets of images in `.npz` files: ADM's, with `mu, sigma, mu_s, sigma_s`, and ours, which say more.

Files of ours have ADM's arrays too; its evaluator also asks for images in a reference, which they do not have. It
takes a file of images in their place.

    B images, H W image size, N images written or kept, C features
"""
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vqim.evaluation.feature_sets import Statistics
from vqim.evaluation.frechet import Gaussian

_PROTOCOL = "vqim_protocol"


def write_statistics(path: str | os.PathLike[str], statistics: Statistics, protocol: Mapping[str, str]) -> None:
    """Writes a file of statistics.

    Args:
      path: the file's path, ending in `.npz`.
      statistics: what it holds.
      protocol: how the features were made, and of which images.
    """
    arrays: dict[str, Any] = {_PROTOCOL: np.array(json.dumps(dict(protocol)))}
    for gaussian, ending in ((statistics.pooled, ""), (statistics.spatial, "_s")):
        if gaussian is not None:
            arrays |= {f"mu{ending}": gaussian.mean_D, f"sigma{ending}": gaussian.covariance_DD}
            arrays["count"] = np.array(gaussian.count)
    if statistics.features_NC is not None:
        arrays["features"] = statistics.features_NC.astype(np.float32)
    np.savez(path, **arrays)


def read_statistics(path: str | os.PathLike[str]) -> tuple[Statistics, dict[str, str]]:
    """Reads a file of statistics: ADM's, pytorch-fid's or ours.

    Returns:
      The statistics; the protocol, {} if the file does not say it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds no statistics.
    """
    with open_npz(path) as arrays:
        names = set(arrays.files)
        if not {"mu", "sigma"} <= names:
            raise ValueError(f"{path}: expected the arrays mu and sigma of a reference, got "
                             f"{', '.join(sorted(names)[:6]) or 'none'}")
        count = int(arrays["count"]) if "count" in names else 0
        protocol = json.loads(str(arrays[_PROTOCOL])) if _PROTOCOL in names else {}
        pooled, spatial = (
            Gaussian(_array(arrays, f"mu{ending}", path).astype(np.float64),
                     _array(arrays, f"sigma{ending}", path).astype(np.float64), count)
            if f"mu{ending}" in names else None for ending in ("", "_s"))
        features_NC = _array(arrays, "features", path) if "features" in names else None
        return Statistics(pooled, spatial, features_NC), protocol


def read_images(path: str | os.PathLike[str]) -> np.ndarray:
    """The images of an `.npz` file, ADM's `arr_0`: uint8 [B, H, W, 3].

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds no images.
    """
    with open_npz(path) as arrays:
        if "arr_0" not in arrays.files:
            raise ValueError(f"{path}: expected images in arr_0, got {', '.join(sorted(arrays.files)[:6]) or 'none'}")
        images_BHWC = _array(arrays, "arr_0", path)
    if images_BHWC.dtype != np.uint8 or images_BHWC.ndim != 4 or images_BHWC.shape[3] != 3:
        raise ValueError(f"{path}: arr_0 must be uint8 images [number, height, width, 3], got {images_BHWC.dtype} "
                         f"{images_BHWC.shape}")
    return images_BHWC


class ImagesFile:
    """Writes images as ADM's evaluator reads samples: uint8 in `arr_0`, and their classes in `arr_1`.

    They may come in any order, and wait in a file of their own beside the other one, not in memory. ADM's Inception
    score takes splits in the file's order: images that are sorted by class score too little.

    Args:
      path: the file's path, ending in `.npz`; it appears when it is complete.
      image_size: height and width of the images.
      labels_N: the class of each image; where all are negative, there is no `arr_1`.
    """

    def __init__(self, path: str | os.PathLike[str], image_size: int, labels_N: np.ndarray):
        self._path, self._labels_N = pathlib.Path(path), labels_N
        self._waiting = self._path.with_name(f"{self._path.name}.images")
        self._images_NHWC = np.lib.format.open_memmap(
            self._waiting, "w+", np.uint8, (len(labels_N), image_size, image_size, 3))
        self._missing_N = np.ones(len(labels_N), bool)

    def write(self, number: int, image_HWC: np.ndarray) -> None:
        """Writes image number `number`, from 0 on."""
        self._images_NHWC[number] = image_HWC
        self._missing_N[number] = False

    def finish(self) -> None:
        """Makes the file; ValueError if an image is missing."""
        if self._missing_N.any():
            raise ValueError(f"{self._path}: {self._missing_N.sum()} of {len(self._missing_N)} images are missing")
        self._images_NHWC.flush()
        partial = self._path.with_name(f"{self._path.name}.partial")
        with zipfile.ZipFile(partial, "w") as archive:
            archive.write(self._waiting, "arr_0.npy")
            if (self._labels_N >= 0).any():
                with archive.open("arr_1.npy", "w") as file:
                    np.lib.format.write_array(file, self._labels_N)
        partial.replace(self._path)
        self._waiting.unlink()


def has_statistics(path: str | os.PathLike[str]) -> bool:
    """Whether an `.npz` file holds a reference's mu and sigma."""
    with open_npz(path) as arrays:
        return {"mu", "sigma"} <= set(arrays.files)


def has_images(path: str | os.PathLike[str]) -> bool:
    """Whether an `.npz` file holds images, as ADM's references do beside their statistics."""
    with open_npz(path) as arrays:
        return "arr_0" in arrays.files


def _array(arrays: Any, name: str, path: str | os.PathLike[str]) -> np.ndarray:
    """An array of an open file; ValueError if the file is damaged there, or would need Python's pickle."""
    try:
        found: np.ndarray = arrays[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: its array {name} cannot be read: {error}") from error
    return found


def open_npz(path: str | os.PathLike[str]) -> Any:
    """The arrays of a file, which cannot run code; FileNotFoundError without it, ValueError for another file."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as an .npz file: {error}") from error
    if not isinstance(found, np.lib.npyio.NpzFile):
        raise ValueError(f"{path}: expected an .npz file with named arrays, got a single array")
    return found
