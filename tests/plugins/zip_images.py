"""Images from zip archives, train.zip and validation.zip, without unpacking: members <class>/<name>.png ..."""
import zipfile
from pathlib import Path

import gin

from vqim.data.source import Example


class ZipImages:
    """One split; a ZipFile's members can be read by any number of threads."""

    def __init__(self, path: str, split: str):
        self._archive = zipfile.ZipFile(Path(path) / f"{split}.zip")
        self._names = sorted(member.filename for member in self._archive.infolist() if not member.is_dir())
        if not self._names or any(name.count("/") != 1 for name in self._names):
            raise ValueError(f"path: expected members <class>/<image> in {self._archive.filename}, "
                             f"got {self._names[:3]}")
        self.class_names = tuple(sorted({name.split("/")[0] for name in self._names}))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Example:
        name = self._names[index]
        label = self.class_names.index(name.split("/")[0])
        return Example(self._archive.read(name), label, f"{self._archive.filename}:{name}")


gin.register(ZipImages, module="plugin")
