"""The token cache: a frozen tokenizer's tokens for a data set, written once, read at memory speed.

A split is a folder of four files. It is either complete or absent, since it is written under another name and then
renamed:

    tokens.npy     [views * examples, N, K] uint16 (int32 for vocabularies over 65,536), view by view
    labels.npy     [examples] int32
    crc32.npy      [views * examples] uint32, the CRC-32 of each row of tokens, which reading checks
    metadata.json  grid, tokenizer, classes, counts; checksums of labels.npy, crc32.npy and of itself

    B batch per process, N tokens of an image over all levels in the grid, K channels
"""
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from vqim.contracts.data import Batch
from vqim.data.checksums import damaged_rows, row_checksums, sealed, unsealed
from vqim.data.faults import WrongExampleError
from vqim.data.loader import Evaluation, Loader
from vqim.data.source import SPLITS, check_labels, check_split, counted_classes, fingerprint_of

FORMAT = 2
"""Format 1 had no checksums."""

Levels = tuple[tuple[int, int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class CacheMetadata:
    """What a split in a token cache holds.

    Attributes:
      levels: the token grid: (height, width, channels, vocabulary) of each level; channels are the same in all.
      fingerprint: identifies the tokenizer and its weights.
      image_size: height and width of the images that were encoded.
      class_names: names of the classes, in the order of the labels; empty without classes.
      num_views: the number of differently augmented encodings of each example.
      num_examples: the number of images in the split.
      computed_in: the dtype in which the tokenizer computed, such as 'float32'.
    """

    levels: Levels
    fingerprint: str
    image_size: int
    class_names: tuple[str, ...]
    num_views: int
    num_examples: int
    computed_in: str = "float32"

    def __post_init__(self) -> None:
        if self.num_views < 1:
            raise ValueError(f"num_views: expected an integer >= 1, got {self.num_views}")

    @property
    def num_tokens(self) -> int:
        """N, the number of positions in all levels."""
        return sum(height * width for height, width, _, _ in self.levels)

    @property
    def num_channels(self) -> int:
        """K, the number of tokens at each position."""
        return self.levels[0][2]

    @property
    def vocabularies(self) -> np.ndarray:
        """The number of codes at each position, int64 [N]."""
        return np.concatenate([np.full(height * width, vocabulary, np.int64)
                               for height, width, _, vocabulary in self.levels])

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the tokens in the file."""
        return np.dtype(np.uint16 if max(level[3] for level in self.levels) <= 2**16 else np.int32)


class TokenCacheWriter:
    """Writes one split; use it in a `with` statement, whose end commits. After an error no files are left.

    Rows come view by view, each view with all examples in the same order, as from `Images.views`. A validation split
    has one view, from `Images.evaluation`. Only one process writes.
    """

    def __init__(
        self, path: str | os.PathLike[str], split: str, *, levels: Sequence[Sequence[int]], fingerprint: str,
        image_size: int, class_names: Sequence[str], num_views: int = 1, computed_in: str = "float32",
    ):
        """Makes the folder in which the split is written until it is complete.

        Args:
          path: the path of the cache; the split goes to `path/<split>`.
          split: "train" or "validation".
          levels: (height, width, channels, vocabulary) of each level of the tokenizer's grid.
          fingerprint: identifies the tokenizer and its weights.
          image_size: height and width of the images that are encoded.
          class_names: names of the classes, in the order of the labels; empty without classes.
          num_views: the number of times that each example comes.
          computed_in: the dtype in which the tokenizer computes.

        Raises:
          FileExistsError: the split already exists.
          ValueError: an argument is out of range.
        """
        check_split(split)
        self._metadata = CacheMetadata(
            as_levels(levels), fingerprint, image_size, tuple(class_names), num_views, 0, computed_in)
        self._folder = Path(path) / split
        if self._folder.exists():
            raise FileExistsError(f"{self._folder} exists. Remove it to write the cache again, or give another path.")
        self._unfinished = self._folder.with_name(f".{split}.unfinished")
        if self._unfinished.exists():  # what a killed run left
            shutil.rmtree(self._unfinished)
        self._unfinished.mkdir(parents=True)
        self._file: BinaryIO = open(self._unfinished / "tokens.npy", "wb")
        self._labels: list[np.ndarray] = []
        self._checksums: list[np.ndarray] = []
        self._num_rows = 0
        self._write_header()
        self._vocabulary_N = self._metadata.vocabularies

    def write(self, tokens_BNK: np.ndarray, labels_B: np.ndarray, valid_B: np.ndarray) -> None:
        """Appends the rows that are valid.

        Args:
          tokens_BNK: tokens, integers.
          labels_B: labels, integers.
          valid_B: bool, True for the rows to append.

        Raises:
          ValueError: a shape, token or label does not fit the metadata.
        """
        expected = (len(valid_B), self._metadata.num_tokens, self._metadata.num_channels)
        if tokens_BNK.shape != expected or tokens_BNK.dtype.kind not in "iu" or labels_B.shape != valid_B.shape:
            raise ValueError(f"tokens_BNK, labels_B: expected integers {list(expected)} and {list(valid_B.shape)}, "
                             f"got {tokens_BNK.dtype} {list(tokens_BNK.shape)} and {list(labels_B.shape)}")
        tokens_BNK, labels_B = tokens_BNK[valid_B], labels_B[valid_B]
        wrong = (tokens_BNK < 0) | (tokens_BNK >= self._vocabulary_N[:, None])
        if wrong.any():
            raise ValueError(f"tokens_BNK: expected tokens within the vocabularies of {self._metadata.levels}, "
                             f"got {tokens_BNK[wrong][0]}")
        if self._metadata.class_names:
            check_labels(labels_B, len(self._metadata.class_names), self._folder)
        rows_BNK = np.ascontiguousarray(tokens_BNK, self._metadata.dtype)
        self._file.write(rows_BNK.tobytes())
        self._checksums.append(row_checksums(rows_BNK))
        self._labels.append(labels_B.astype(np.int32))
        self._num_rows += len(tokens_BNK)

    def commit(self) -> None:
        """Completes the files and gives the folder its name.

        Raises:
          ValueError: the rows written are not `num_views` times the same examples.
        """
        num_views = self._metadata.num_views
        num_examples, rest = divmod(self._num_rows, num_views)
        labels = np.concatenate(self._labels) if self._labels else np.zeros(0, np.int32)
        if rest or not num_examples or (labels.reshape(num_views, -1) != labels[:num_examples]).any():
            raise ValueError(f"{self._folder}: expected {num_views} views of the same examples in the same order, got "
                             f"{self._num_rows} rows" + ("" if rest or not num_examples else " with other labels"))
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        np.save(self._unfinished / "labels.npy", labels[:num_examples])
        np.save(self._unfinished / "crc32.npy", np.concatenate(self._checksums))
        metadata = dataclasses.asdict(dataclasses.replace(self._metadata, num_examples=num_examples))
        (self._unfinished / "metadata.json").write_text(
            sealed(self._unfinished, {"format": FORMAT, **metadata}, ("labels.npy", "crc32.npy")))
        self._unfinished.rename(self._folder)

    def discard(self) -> None:
        """Removes what was written."""
        self._file.close()
        shutil.rmtree(self._unfinished, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.discard()

    def _write_header(self) -> None:
        """Writes the .npy header for the rows so far; NumPy leaves space in it for a larger first dimension."""
        shape = (self._num_rows, self._metadata.num_tokens, self._metadata.num_channels)
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": self._metadata.dtype.str, "fortran_order": False, "shape": shape})


class Tokens:
    """A data set of tokens, with the interface of `Images`.

    Batches are `{"tokens": int32 [B, N, K], "labels": int32 [B], "valid": bool [B]}`. If the cache has several views
    of each example, a training epoch has one of them, and `num_views` epochs have each view once.

    Both splits are opened when they are first needed; the tokens stay in the files. Opening raises FileNotFoundError if
    one is missing, and ValueError if a file is damaged or the splits do not belong together.

    Args:
      path: the folder that holds `train` and `validation`.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = path

    @functools.cached_property
    def _splits(self) -> dict[str, "_CachedSplit"]:
        """Both splits, opened."""
        splits = {split: _CachedSplit(Path(self._path) / split) for split in SPLITS}
        train, validation = (splits[split].metadata for split in SPLITS)
        for name in ("levels", "fingerprint", "image_size", "class_names", "computed_in"):
            if getattr(train, name) != getattr(validation, name):
                raise ValueError(f"{self._path}: its splits differ in {name}: {getattr(train, name)} and "
                                 f"{getattr(validation, name)}. Write both with the same tokenizer.")
        return splits

    @property
    def levels(self) -> Levels:
        """The token grid: (height, width, channels, vocabulary) of each level."""
        return self._splits["train"].metadata.levels

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the tokenizer that wrote the tokens."""
        return self._splits["train"].metadata.fingerprint

    @property
    def computed_in(self) -> str:
        """The dtype in which the tokenizer computed the tokens, such as 'float32'."""
        return self._splits["train"].metadata.computed_in

    @property
    def image_size(self) -> int:
        """Height and width of the images that were encoded."""
        return self._splits["train"].metadata.image_size

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels; empty without classes."""
        return self._splits["train"].metadata.class_names

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 without classes."""
        return len(self.class_names)

    def num_examples(self, split: str) -> int:
        """The number of images in one split, over all processes; views do not count."""
        check_split(split)
        return self._splits[split].metadata.num_examples

    def fingerprint_of(self, split: str) -> str:
        """Changes when the tokenizer or the labels of a split do."""
        return fingerprint_of(np.array([self.fingerprint]), self._splits[split].labels)

    def describe(self) -> list[str]:
        """Counts and classes of the splits, a line for each."""
        classes = counted_classes(self.num_classes)
        return [f"{name}: tokens of {split.metadata.num_examples:,} images in {split.metadata.num_views} views, "
                f"{classes}, computed in {split.metadata.computed_in}" for name, split in self._splits.items()]

    def batch_like(self, batch_size: int) -> Batch:
        """See `vqim.contracts.data.Dataset`."""
        metadata = self._splits["train"].metadata
        shapes = {"tokens": ((metadata.num_tokens, metadata.num_channels), np.int32), "labels": ((), np.int32),
                  "valid": ((), bool)}
        return {name: np.broadcast_to(np.zeros((), dtype), (batch_size, *shape))
                for name, (shape, dtype) in shapes.items()}

    def check_written_by(self, levels: Sequence[Sequence[int]], fingerprint: str) -> None:
        """Raises ValueError unless a tokenizer with this grid and fingerprint wrote the cache."""
        for name, own, wanted in (("grid", self.levels, as_levels(levels)),
                                  ("fingerprint", self.fingerprint, fingerprint)):
            if own != wanted:
                raise ValueError(f"token cache {self._path}: expected tokens of the tokenizer in use, {name} {wanted}, "
                                 f"got {name} {own}. Write a cache with this tokenizer, or give the one that wrote it.")

    def training(self, batch_size: int, seed: int, *, process_index: int = 0, process_count: int = 1) -> Loader:
        """Endless shuffled batches of the training split; `batch_size` is this process's part."""
        return Loader(self._splits["train"].read, self.num_examples("train"), batch_size, seed,
                      process_index=process_index, process_count=process_count)

    def evaluation(
        self, batch_size: int, *, split: str = "validation", process_index: int = 0, process_count: int = 1,
        first_batch: int = 0, num_examples: int | None = None,
    ) -> Evaluation:
        """One pass over a split in the order in which it was written; see `Dataset.evaluation`."""
        check_split(split)
        return Evaluation(self._splits[split].read, self.num_examples(split), batch_size,
                          process_index=process_index, process_count=process_count, first_batch=first_batch,
                          num_chosen=num_examples)


class _CachedSplit:
    def __init__(self, folder: Path):
        self.metadata = _read_metadata(folder)
        metadata = self.metadata
        shape = (metadata.num_views * metadata.num_examples, metadata.num_tokens, metadata.num_channels)
        self._tokens = _open_array(folder / "tokens.npy", shape, metadata.dtype)
        self.labels = _open_array(folder / "labels.npy", (metadata.num_examples,), np.dtype(np.int32))
        self._checksums = _open_array(folder / "crc32.npy", shape[:1], np.dtype(np.uint32))
        self._path = folder / "tokens.npy"

    def read(self, epochs_B: np.ndarray, records_B: np.ndarray) -> Batch:
        """A `ReadBatch`. In an epoch, neighbouring examples have different views; each epoch moves to the next view."""
        views_B = (epochs_B + records_B) % self.metadata.num_views
        rows_B = views_B * self.metadata.num_examples + records_B
        tokens_BNK = np.empty((len(rows_B), *self._tokens.shape[1:]), np.int32)
        ascending = np.argsort(rows_B)  # so that the file is read in order
        tokens_BNK[ascending] = found_BNK = self._tokens[rows_B[ascending]]
        damaged = damaged_rows(found_BNK, self._checksums[rows_B[ascending]])
        if len(damaged):
            raise WrongExampleError(f"{self._path}: row {rows_B[ascending][damaged[0]]} is damaged: its checksum does "
                                    "not match. Write the cache anew")
        return {"tokens": tokens_BNK, "labels": self.labels[records_B], "valid": np.ones(len(rows_B), bool)}


def as_levels(levels: Sequence[Sequence[int]]) -> Levels:
    """A token grid as tuples.

    Raises:
      ValueError: `levels` is not (height, width, channels, vocabulary), all at least 1, for one level or more, or its
        levels have different numbers of channels.
    """
    if not levels or any(len(level) != 4 or min(level) < 1 for level in levels):
        raise ValueError("levels: expected (height, width, channels, vocabulary), all >= 1, of each level; "
                         f"got {levels}")
    if len({channels for _, _, channels, _ in levels}) > 1:
        raise ValueError(f"levels: expected the same number of channels in all levels, got {levels}")
    return tuple((int(height), int(width), int(channels), int(vocabulary))
                 for height, width, channels, vocabulary in levels)


def _read_metadata(folder: Path) -> CacheMetadata:
    path = folder / "metadata.json"
    if not path.is_file():
        raise FileNotFoundError(f"path: {folder} holds no token cache. Write one first, by python -m "
                                "launch.cache_tokens, or check the path.")
    try:
        version = json.loads(path.read_text(errors="replace")).get("format")
        if version != FORMAT:
            raise ValueError(f"its format is {version} and not {FORMAT}")
        fields = unsealed(path)
        del fields["format"]
        fields["levels"] = as_levels(fields["levels"])
        fields["class_names"] = tuple(fields["class_names"])
        return CacheMetadata(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected the metadata of a token cache, got {error!r}. Remove the cache and "
                         "write it again by launch.cache_tokens.") from error


def _open_array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: expected a whole NumPy array, it is missing, truncated or damaged ({error}). "
                         "Remove the cache and write it again by launch.cache_tokens.") from error
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{path}: expected {dtype} {list(shape)} by its metadata, got {array.dtype} "
                         f"{list(array.shape)}. Remove the cache and write it again by "
                         "launch.cache_tokens.")
    return array
