"""Images from tar archives, train.tar and validation.tar, without unpacking: members <class>/<name>.png ..."""
import os
import tarfile
from pathlib import Path

import gin

from vqim.data.source import Example


class TarImages:
    """One split; members are read where they lie, by any number of threads."""

    def __init__(self, path: str, split: str):
        archive = Path(path) / f"{split}.tar"
        with tarfile.open(archive) as tar:
            members = sorted((member.name, member.offset_data, member.size) for member in tar if member.isfile())
        if not members or any(name.count("/") != 1 for name, _, _ in members):
            raise ValueError(f"path: expected members <class>/<image> in {archive}, got {members[:3]}")
        self.class_names = tuple(sorted({name.split("/")[0] for name, _, _ in members}))
        self._members, self._archive, self._file = members, archive, os.open(archive, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> Example:
        name, offset, size = self._members[index]
        label = self.class_names.index(name.split("/")[0])
        return Example(os.pread(self._file, size, offset), label, f"{self._archive}:{name}")


gin.register(TarImages, module="plugin")
