"""A committed checkpoint, open for reading: any number of processes may read any part of it."""
import abc
import difflib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from vqim.checkpoint import layout, seal
from vqim.checkpoint.errors import CheckpointError, NoCheckpointError
from vqim.checkpoint.files import Files, Hold
from vqim.checkpoint.policy import Saved
from vqim.checkpoint.store import ArrayReader, numpy_dtype, to_box
from vqim.state.init import Index, full_index


class NamedArrays(abc.ABC):
    """Named arrays at rest, of which any part can be read.

    Attributes:
      metadata: 'arrays' (name -> 'shape', 'dtype'), and other fields.
    """

    step: int

    def __init__(self, where: str, metadata: dict[str, Any]) -> None:
        self._where, self.metadata = where, metadata

    def names(self, regex: str | None = None) -> list[str]:
        """The sorted names of the arrays; with a regular expression, those in which `re.search` finds it."""
        return sorted(name for name in self.metadata["arrays"] if regex is None or re.search(regex, name))

    def spec(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype of an array.

        Raises:
          ValueError: the checkpoint has no such array.
        """
        found = self.metadata["arrays"].get(name)
        if found is None:
            close = difflib.get_close_matches(name, self.metadata["arrays"], n=3)
            hint = f"close to it: {close}" if close else f"it has {len(self.metadata['arrays'])} others, see names()"
            raise ValueError(f"{self._where} has no array {name!r}; {hint}")
        return tuple(found["shape"]), numpy_dtype(found["dtype"])

    def check(self, expected: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
        """Checks that the checkpoint has all of these arrays, with these shapes and dtypes; it may have more.

        Raises:
          ValueError: some are missing or different; the message lists up to ten of them.
        """
        wrong = []
        for name, (shape, dtype) in sorted(expected.items()):
            if name not in self.metadata["arrays"]:
                wrong.append(f"{name}: expected {np.dtype(dtype)}{list(shape)}, not in the checkpoint")
            elif self.spec(name) != (tuple(shape), np.dtype(dtype)):
                saved_shape, saved_dtype = self.spec(name)
                wrong.append(f"{name}: expected {np.dtype(dtype)}{list(shape)}, "
                             f"the checkpoint has {saved_dtype}{list(saved_shape)}")
        if wrong:
            more = [f"and {len(wrong) - 10} more"] if len(wrong) > 10 else []
            raise ValueError(f"{self._where} does not fit the model ({len(wrong)} of {len(expected)} arrays); "
                             "was it saved with another config?\n  " + "\n  ".join(wrong[:10] + more))

    @abc.abstractmethod
    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Reads an array, or the part of it that `index` selects; see `Checkpoint.read`."""


class Checkpoint(NamedArrays):
    """A committed step. It is not removed while this object lives, where the file system has locks.

    Attributes:
      step: the number of training steps done.
      metadata: 'schema_version', 'step', 'process_count' (in the run that saved it), 'arrays' (name -> 'shape',
        'dtype', 'chunks'), and the run's own fields.
      config: the gin config of the run, as text.
      commit: the fields of the commit file: 'metrics', 'saved_at', 'files' (name -> SHA-256).
    """

    def __init__(self, files: Files, step: int) -> None:
        """Opens a step that is known to be committed.

        Raises:
          CheckpointError: its metadata are damaged, or have a schema newer than this program knows.
        """
        self.step = step
        self._files = files
        self._directory = layout.step_name(step)
        self._where = f"checkpoint {files.location}/{self._directory}"
        self._hold = self._held()
        self.commit = read_commit(files, step)
        super().__init__(self._where, layout.decode_metadata(*self._read(layout.METADATA_FILE)))
        self.config = self._read(layout.CONFIG_FILE)[0].decode()
        self._arrays = ArrayReader(files, self._directory)

    def _held(self) -> Hold:
        """Holds the step's directory, so that it is not removed while this object lives."""
        try:
            hold = self._files.hold(self._directory, shared=True)
        except FileNotFoundError:
            hold = None
        if hold is None:
            raise NoCheckpointError(f"{self._where} has just been removed, or is being removed")
        return hold

    def data_position(self, process_index: int = 0) -> dict[str, Any]:
        """The position in the data of one of the processes that saved it.

        Raises:
          ValueError: there was no such process.
        """
        process_count = self.metadata["process_count"]
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index must be in [0, {process_count}): that many processes saved step "
                             f"{self.step}, got {process_index}")
        return layout.from_json(*self._read(layout.data_file(process_index)))

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Reads an array, or the part of it that `index` selects.

        Args:
          name: the name of the array.
          index: one slice with step 1 for each dimension; None for the whole array.

        Raises:
          ValueError: there is no such array, or the index does not fit it.
          CheckpointError: the part is missing, truncated or changed on disk.
        """
        shape, dtype = self.spec(name)
        box = to_box(full_index(shape) if index is None else index, shape)
        try:
            return self._arrays.read(name, box, shape, dtype)
        except OSError as error:
            if self._files.read(f"{self._directory}/{layout.COMMIT_FILE}") is None:
                raise NoCheckpointError(f"{self._where} was removed while it was being read; open a newer "
                                        "step") from error
            raise CheckpointError(f"{self._where} is damaged, {name} cannot be read: {error}; "
                                  f"{layout.REMEDY}") from error

    def verify(self, regex: str | None = None) -> list[str]:
        """Reads everything, or only the arrays in whose names `re.search` finds a regular expression.

        Returns:
          What is wrong, a line for each damaged file or array; nothing if all is whole.
        """
        problems = []
        for path in self.commit.get("files", {}):
            try:
                self._read(path)
            except CheckpointError as error:
                problems.append(str(error))
        for name in self.names(regex):
            try:
                self.read(name)
            except CheckpointError as error:
                problems.append(str(error))
        return problems

    def _read(self, path: str) -> tuple[bytes, str]:
        """A file's contents, checked, and its name for messages."""
        where = f"{self._files.location}/{self._directory}/{path}"
        expected = self.commit.get("files", {}).get(path)
        return seal.check(self._files.read(f"{self._directory}/{path}"), expected, where), where


def read_commit(files: Files, step: int) -> dict[str, Any]:
    """The fields of a step's commit file.

    Raises:
      CheckpointError: it is missing or damaged.
    """
    path = f"{layout.step_name(step)}/{layout.COMMIT_FILE}"
    data, where = files.read(path), f"{files.location}/{path}"
    fields = layout.from_json(data, where)
    version = fields.get("schema_version")
    if version == 1 and fields.keys() == {"schema_version", "step", "metrics"}:
        return fields  # written before there were checksums
    layout.refuse_newer(version, where)
    return seal.unseal(data, where)


def read_saved(files: Files, step: int) -> Saved:
    """A committed step as policies see it. Damaged files tell nothing, but are no error here."""
    metrics: dict[str, float] = {}
    saved_at = None
    path = f"{layout.step_name(step)}/{layout.MEASURED_FILE}"
    try:
        commit = read_commit(files, step)
        metrics, saved_at = dict(commit["metrics"]), commit.get("saved_at")
        if (measured := files.read(path)) is not None:
            metrics |= seal.unseal(measured, path)["metrics"]
    except CheckpointError as error:
        logging.warning("%s", error)
    return Saved(step, metrics, saved_at)
