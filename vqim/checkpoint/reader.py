"""A committed checkpoint, open for reading: any number of processes may read any part of it."""
import difflib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vqim.checkpoint import layout
from vqim.checkpoint.errors import CheckpointError
from vqim.checkpoint.files import Files
from vqim.checkpoint.store import ArrayReader, numpy_dtype, to_box
from vqim.state.init import Index, full_index


class Checkpoint:
    """A committed step.

    Attributes:
      step: the number of training steps done.
      metadata: 'schema_version', 'step', 'process_count' (in the run that saved it), 'arrays' (name -> 'shape',
        'dtype', 'chunks'), and the run's own fields.
      config: the gin config of the run, as text.
    """

    def __init__(self, files: Files, step: int) -> None:
        """Opens a step that is known to be committed.

        Raises:
          CheckpointError: its metadata are damaged, or have a schema newer than this program knows.
        """
        self.step = step
        self._files = files
        self._directory = layout.step_name(step)
        self.metadata = layout.decode_metadata(*self._read(layout.METADATA_FILE))
        config, where = self._read(layout.CONFIG_FILE)
        if config is None:
            raise CheckpointError(f"{where} is missing: the checkpoint is damaged, open an earlier step")
        self.config = config.decode()
        self._arrays = ArrayReader(files, self._directory)

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

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Reads an array, or the part of it that `index` selects.

        Args:
          name: the name of the array.
          index: one slice with step 1 for each dimension; None for the whole array.

        Raises:
          ValueError: there is no such array, or the index does not fit it.
          CheckpointError: the part is missing, truncated or changed on disk.
        """
        shape, _ = self.spec(name)
        box = to_box(full_index(shape) if index is None else index, shape)
        try:
            return self._arrays.read(name, box)
        except OSError as error:
            raise CheckpointError(f"{self._where} is damaged, {name} cannot be read: {error}. "
                                  "Open an earlier step") from error

    @property
    def _where(self) -> str:
        return f"checkpoint {self._files.location}/{self._directory}"

    def _read(self, path: str) -> tuple[bytes | None, str]:
        """A file's contents, and its name for messages."""
        return self._files.read(f"{self._directory}/{path}"), f"{self._files.location}/{self._directory}/{path}"
