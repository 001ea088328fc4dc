"""Images in tar archives as a source: the archives are read where they lie, nothing is unpacked."""
import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vqim.data.folder import EXTENSIONS
from vqim.data.source import Example, check_labels, check_split, existing_folder

_LABEL = ".cls"


class TarShards:
    """Image files in tar archives, the shards of a split; in the order of the shards' names, then as they lie in them.

    An image is `<class>/<name>.jpg` (folders above the class do not matter), and classes are those names, sorted. Or it
    is `<key>.jpg` beside `<key>.cls` with its class's number in digits, as WebDataset writes shards. Images without
    either have no classes. Members that begin with a dot, and those that are no images by their ending, are ignored.

    Opening reads each member's header once. Any number of threads reads images, each from its place in the archive.

    Attributes:
      class_names: the names of the classes.
      ignored: what there is besides the images and labels, and how much of it.
    """

    def __init__(
        self, path: str | os.PathLike[str], split: str, train: str = "train*.tar", validation: str = "val*.tar",
        class_names: Sequence[str] = (), num_classes: int = 0,
    ):
        """Lists the images of one split.

        Args:
          path: the folder of the archives.
          split: "train" or "validation".
          train: a pattern for the names of the training split's archives, relative to `path`.
          validation: the same for the validation split.
          class_names: for shards with `.cls`: the names of the classes 0, 1, ...
          num_classes: for these without `class_names`: how many there are; they are then named by their numbers.

        Raises:
          FileNotFoundError: there is no such folder, or no such archive.
          ValueError: an archive is compressed, damaged or cut off, or has no images, or labels are missing or wrong.
        """
        check_split(split)
        pattern = train if split == "train" else validation
        self._shards = sorted(existing_folder(path).glob(pattern))
        if not self._shards:
            raise FileNotFoundError(f"path: expected archives {pattern} of the {split} split in {path}, found none")
        self._names: list[str] = []
        places: list[tuple[int, int, int]] = []
        numbers: dict[str, int] = {}
        ignored: Counter[str] = Counter()
        for number, shard in enumerate(self._shards):
            for name, offset, size in _members(shard):
                stem, ending = os.path.splitext(name)
                if os.path.basename(name).startswith("."):
                    ignored["hidden files"] += 1
                elif ending == _LABEL:
                    numbers[f"{number}/{stem}"] = _number(_read(shard, offset, size), f"{shard}:{name}")
                elif ending.lower() in EXTENSIONS:
                    self._names.append(name)
                    places.append((number, offset, size))
                else:
                    ignored[f"members that end in {ending}" if ending else "members without an ending"] += 1
        if not places:
            raise ValueError(f"path: expected images in {self._shards[0]} and the other archives {pattern}, found none")
        self._shard_N, self._offset_N, self._size_N = np.array(places, np.int64).T.copy()
        self.ignored = dict(sorted(ignored.items()))
        self.class_names, self._label_N = self._labels(numbers, tuple(class_names), num_classes)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Example:
        shard = self._shards[self._shard_N[index]]
        image = _read(shard, int(self._offset_N[index]), int(self._size_N[index]))
        return Example(image, int(self._label_N[index]), f"{shard}:{self._names[index]}")

    def fingerprint(self) -> str:
        """A hash of the names, places, sizes and labels of all images."""
        digest = hashlib.sha256("\n".join(self._names).encode("utf-8", "surrogateescape"))
        for array_N in (self._shard_N, self._offset_N, self._size_N, self._label_N):
            digest.update(array_N.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def _labels(
        self, numbers: dict[str, int], class_names: tuple[str, ...], num_classes: int,
    ) -> tuple[tuple[str, ...], np.ndarray]:
        """The names of the classes, and the labels."""
        if not numbers:
            if class_names or num_classes:
                raise ValueError(f"class_names, num_classes: are for shards with {_LABEL} members, which "
                                 f"{self._shards[0]} and the others do not have")
            folders = [os.path.basename(os.path.dirname(name)) for name in self._names]
            names = tuple(sorted(set(folders)))
            if names == ("",):
                return (), np.full(len(folders), -1)
            if "" in names:
                raise ValueError(f"{self._shards[0]} and the others have images in class folders and beside them, such "
                                 f"as {self._names[folders.index('')]}")
            label_of = {name: label for label, name in enumerate(names)}
            return names, np.array([label_of[folder] for folder in folders])
        keys = [f"{shard}/{os.path.splitext(name)[0]}"
                for shard, name in zip(self._shard_N, self._names, strict=True)]
        missing = [name for key, name in zip(keys, self._names, strict=True) if key not in numbers]
        if missing:
            raise ValueError(f"{len(missing)} of {len(keys)} images in {self._shards[0].parent} have no {_LABEL} "
                             f"member beside them, such as {missing[0]}")
        names = class_names or tuple(map(str, range(num_classes)))
        if not names:
            raise ValueError(f"num_classes: must be given for shards whose {_LABEL} members number the classes, such "
                             "as data.TarShards.num_classes = 1000; or class_names")
        label_N = np.array([numbers[key] for key in keys])
        check_labels(label_N, len(names), self._shards[0])
        return names, label_N


def _members(shard: Path) -> list[tuple[str, int, int]]:
    """The name, offset and size of each file in an archive."""
    try:
        with tarfile.open(shard, "r:") as tar:
            return [(member.name, member.offset_data, member.size) for member in tar if member.isfile()]
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard}: expected a tar archive that is whole and not compressed ({error}). Images are "
                         "compressed already: write shards without -z") from error


def _read(shard: Path, offset: int, size: int) -> bytes:
    # Not kept open: a data set may have more shards than a process may have open files.
    with open(shard, "rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


def _number(text: bytes, where: str) -> int:
    if not text.strip().isdigit():
        raise ValueError(f"{where}: expected a class's number in digits, got {text[:20]!r}")
    return int(text)
