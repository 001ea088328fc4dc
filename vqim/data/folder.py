"""A folder of image files as a source, with or without class subfolders."""
import hashlib
import os
from collections import Counter
from pathlib import Path

from PIL import features

from vqim.data.source import Example, check_split, existing_folder

EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    *((".avif",) if features.check("avif") else ())})

_SPLIT_WORDS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})
"""Names of folders that are splits and no classes."""


class ImageFolder:
    """Image files in `<folder>/<class>/<name>`, or all in `<folder>` if they have no classes.

    `<folder>` is `path/train` for the training split, and `path/val` or `path/validation` for the validation split,
    if `path` has such folders. If it has none, the folder is `path` for both, and a hash of `<class>/<name>` chooses a
    fixed share of the files as the validation split. So adding files never moves other files between splits.

    Classes are the names of the (training) subfolders, sorted; files are in sorted order too. Names that begin with
    a dot and files that are not images by their extension are ignored. Files are decoded when they are read.

    Attributes:
      class_names: the names of the classes.
      ignored: what there is in the split's folder besides its images, and how much of it.
    """

    def __init__(self, path: str | os.PathLike[str], split: str, validation_fraction: float = 0.1):
        """Lists the files of one split.

        Args:
          path: the folder.
          split: "train" or "validation".
          validation_fraction: the share of files in the validation split, in (0, 1); unused with folders for splits.

        Raises:
          FileNotFoundError: there is no such folder.
          ValueError: a folder has no images, the validation split has a class that the training split does not have,
            or an argument is out of range.
        """
        check_split(split)
        if not 0 < validation_fraction < 1:
            raise ValueError(f"validation_fraction: expected a number between 0 and 1, got {validation_fraction}")
        root = existing_folder(path)
        train_folder, validation_folder = _split_folders(root)
        self._folder = validation_folder if split == "validation" else train_folder
        self.class_names = tuple(_subfolders(train_folder))
        splits = _SPLIT_WORDS & {name.lower() for name in self.class_names}
        if train_folder == root and len(splits) == len(self.class_names) > 0:
            raise ValueError(f"path: {root} has the folders {', '.join(self.class_names)}, which look like splits and "
                             "not like classes. Name them train and val (or validation)")
        self.ignored = _ignored(self._folder, self.class_names)
        self._names, self._labels = _list_images(self._folder, self.class_names)
        if train_folder == validation_folder:
            chosen = [in_validation(name, validation_fraction) == (split == "validation") for name in self._names]
            self._names = [name for name, keep in zip(self._names, chosen, strict=True) if keep]
            self._labels = [label for label, keep in zip(self._labels, chosen, strict=True) if keep]
            if not self._names:
                raise ValueError(
                    f"{root}: none of its {len(chosen)} images falls in the {split} split with validation_fraction="
                    f"{validation_fraction}. Change validation_fraction, or make folders train/ and validation/.")

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Example:
        path = self._folder / self._names[index]
        return Example(path.read_bytes(), self._labels[index], str(path))


    def fingerprint(self) -> str:
        """A hash of the names and sizes of all files."""
        digest = hashlib.sha256()
        for name in self._names:
            digest.update(f"{name} {(self._folder / name).stat().st_size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]


def in_validation(name: str, fraction: float) -> bool:
    """Whether a file belongs to the validation split; depends only on a hash of its name (`<class>/<name>`)."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _split_folders(root: Path) -> tuple[Path, Path]:
    """The folders of the training and the validation split; `root` itself for both if it has no such folders."""
    train = root / "train"
    for validation in (root / "val", root / "validation"):
        if train.is_dir() and validation.is_dir():
            return train, validation
    return root, root


def _list_images(folder: Path, class_names: tuple[str, ...]) -> tuple[list[str], list[int]]:
    """The names (relative to `folder`) and labels of all images in it."""
    found = _subfolders(folder)
    unknown = sorted(set(found) - set(class_names))
    if unknown:
        raise ValueError(f"{folder}: its subfolders {', '.join(unknown[:5])} are no classes of the training split, "
                         f"which has {', '.join(class_names[:5]) or 'no class subfolders'}"
                         f"{', ...' if len(class_names) > 5 else ''}")
    if not found:
        if class_names:
            raise ValueError(f"{folder}: expected class subfolders as the training split has, found none")
        names = _image_names(folder)
        if not names:
            raise ValueError(f"{folder}: expected images, or subfolders of images, found neither. Images are files "
                             f"that end in {' '.join(sorted(EXTENSIONS))}.")
        return names, [-1] * len(names)
    all_names: list[str] = []
    labels: list[int] = []
    for class_name in found:
        names = _image_names(folder / class_name)
        if not names:
            raise ValueError(f"{folder / class_name}: no images in this class folder. Expected {folder.name}/<class>/"
                             f"<image>, or folders train/ and val/ (or validation/) that both look like that.")
        all_names += [f"{class_name}/{name}" for name in names]
        labels += [class_names.index(class_name)] * len(names)
    return all_names, labels


def _ignored(folder: Path, class_names: tuple[str, ...]) -> dict[str, int]:
    """What is beside the images, by what it is."""
    found: Counter[str] = Counter()
    for place in [folder, *(folder / name for name in class_names if (folder / name).is_dir())]:
        is_class = place != folder
        with os.scandir(place) as entries:
            for entry in entries:
                ending = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith("."):
                    found["hidden files and folders"] += 1
                elif entry.is_dir():
                    if is_class:
                        found["folders in class folders"] += 1
                elif ending not in EXTENSIONS:
                    found[f"files that end in {ending}" if ending else "files without an ending"] += 1
                elif class_names and not is_class:
                    found["images beside the class folders"] += 1
    return dict(sorted(found.items()))


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _image_names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()
                      and os.path.splitext(entry.name)[1].lower() in EXTENSIONS)
