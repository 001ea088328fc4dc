"""Image files in an LMDB database, as LSUN is shipped: a source without classes."""
import hashlib
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from vqim.data.folder import in_validation
from vqim.data.source import Example, check_split

_open: "weakref.WeakValueDictionary[Path, Any]" = weakref.WeakValueDictionary()
_opening = threading.Lock()


class Lmdb:
    """The values of a database, each the bytes of an image file (LSUN has WebP), in the order of their keys.

    The validation split is a second database, or, without one, a fixed share of the first one: those whose keys have
    certain hashes, as in `ImageFolder`.
    """

    class_names = ()

    def __init__(
        self, path: str | os.PathLike[str], split: str, validation_path: str | os.PathLike[str] | None = None,
        validation_fraction: float = 0.1,
    ):
        """Lists the keys of one split; values are read when they are asked for.

        Args:
          path: the database: a folder with data.mdb, such as bedroom_train_lmdb, or a file.
          split: "train" or "validation".
          validation_path: the database of the validation split, such as bedroom_val_lmdb.
          validation_fraction: without it, the share of the first database in the validation split, in (0, 1).

        Raises:
          ImportError: the package `lmdb` is not installed.
          FileNotFoundError: there is no such database.
          ValueError: it is damaged or no such database, the split has no images, or an argument is out of range.
        """
        check_split(split)
        if not 0 < validation_fraction < 1:
            raise ValueError(f"validation_fraction: expected a number between 0 and 1, got {validation_fraction}")
        is_validation = split == "validation"
        name, place = ("validation_path", validation_path) if is_validation and validation_path else ("path", path)
        assert place is not None
        self._path = Path(place)
        self._database = _database(self._path, name)
        keys, ends = bytearray(), [0]
        # Values lie on pages of their own, which this does not touch.
        with self._database.begin() as transaction, transaction.cursor() as cursor:
            for key in cursor.iternext(keys=True, values=False):
                if validation_path or in_validation(key.hex(), validation_fraction) == is_validation:
                    keys += key
                    ends.append(len(keys))
        # One string for all: LSUN bedroom has 3 million keys, which would be 270 MB as objects of their own.
        self._keys, self._ends_N = bytes(keys), np.array(ends, np.int64)
        if len(self) == 0:
            raise ValueError(f"{name}: expected images in {self._path}; its {split} split has none")

    def __len__(self) -> int:
        return len(self._ends_N) - 1

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        key = self._keys[self._ends_N[index]:self._ends_N[index + 1]]
        with self._database.begin() as transaction:  # one for each reader, as threads may not share them
            value = transaction.get(key)
        if value is None:
            raise FileNotFoundError(f"{self._path}: the key {_readable(key)} has gone since the run began")
        return Example(value, -1, f"{self._path}:{_readable(key)}")

    def fingerprint(self) -> str:
        """A hash of the keys and of the database's size."""
        digest = hashlib.sha256(self._keys)
        digest.update(self._ends_N.astype("<i8").tobytes())
        digest.update(f"{_file(self._path).stat().st_size}".encode())
        return digest.hexdigest()[:16]


def _database(path: Path, argument: str) -> Any:
    """The database at a path; one object for all of its readers, since LMDB cannot open it twice in a process."""
    try:
        import lmdb
    except ImportError as error:
        raise ImportError("data.Lmdb reads databases with the package lmdb: pip install 'vqim[lmdb]'") from error
    if not _file(path).is_file():
        raise FileNotFoundError(f"{argument}: expected a folder with data.mdb, such as LSUN's bedroom_train_lmdb, or "
                                f"the file of a database; {str(path)!r} is neither")
    place = path.resolve()
    with _opening:
        found = _open.get(place)
        if found is None:
            try:
                # Nobody writes: no lock file is made, so that the folder may be read-only. Reading ahead is of no use
                # to a random order.
                found = lmdb.open(str(place), subdir=place.is_dir(), readonly=True, lock=False, readahead=False,
                                  create=False)
            except lmdb.Error as error:
                raise ValueError(f"{argument}: expected an LMDB database in {path}: {error}") from error
            _open[place] = found
        return found


def _file(path: Path) -> Path:
    return path / "data.mdb" if path.is_dir() else path


def _readable(key: bytes) -> str:
    return key.decode("ascii", "backslashreplace")
