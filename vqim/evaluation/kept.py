"""An evaluation in progress, kept on disk: what was killed goes on where it was, and ends with the same numbers."""
import json
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import logging

from vqim.contracts.runtime import Hosts
from vqim.evaluation.passes import PassEvaluation

_ABOUT = "about"
_SHARE = 20
"""Writing may take a twentieth of the time: the sums of `fwd` at 256x256 are 2.4 GB."""


class Kept:
    """The file of one evaluation, which belongs to what it says of itself and to nothing else.

    Process 0 writes it; all processes of a run read it.

    Args:
      path: the file, which ends in `.npz`.
      about: what decides the numbers: the checkpoint, the configuration, the settings. A file with another `about` is
        not gone on with.
      hosts: the processes of the run.
      every_seconds: the time between two writings, at least.
    """

    def __init__(self, path: Path, about: Mapping[str, str], hosts: Hosts, every_seconds: float):
        self._path, self._about, self._hosts = path, dict(about), hosts
        self._every, self._cost, self._saved_at = every_seconds, 0.0, time.monotonic()

    def resume(self, evaluation: PassEvaluation) -> None:
        """Brings an evaluation that has just begun to where it was.

        Raises:
          ValueError: this process does not see the file that process 0 sees.
        """
        if missing := evaluation.not_resumable():
            logging.warning("%s cannot be kept, so this evaluation begins anew after a kill (vqim.contracts.evaluation."
                            "Resumable).", ", ".join(missing))
            return
        state = self._read()
        found = str(0 if state is None else int(state["num_done"]))
        name = f"kept/{self._path.name}"
        if self._hosts.process_index == 0:
            self._hosts.post(name, found)
        if self._hosts.get(name) != found:
            raise ValueError(f"{self._path}: process 0 has {self._hosts.get(name)} batches, process "
                             f"{self._hosts.process_index} sees {found}; the folder must be one that all hosts share")
        self._hosts.wait(name)
        if state is not None:
            evaluation.restore(state)

    def after_batch(self, evaluation: PassEvaluation) -> None:
        """Writes the file if it is time to."""
        if time.monotonic() - self._saved_at >= max(self._every, _SHARE * self._cost):
            self.save(evaluation)

    def save(self, evaluation: PassEvaluation) -> None:
        """Writes the file, completely or not at all; a disk that refuses is told, and ends nothing."""
        if self._hosts.process_index != 0 or evaluation.not_resumable():
            return
        begin, temporary = time.monotonic(), self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                arrays = evaluation.state() | {_ABOUT: np.array(json.dumps(self._about))}
                np.savez(file, **arrays)  # type: ignore[arg-type]
            temporary.replace(self._path)
        except OSError as error:
            logging.warning("The evaluation cannot be kept: %s", error)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - begin

    def _read(self) -> dict[str, np.ndarray] | None:
        """What the file holds; None if there is none, or if it is of another evaluation."""
        if not self._path.exists():
            return None
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                about = json.loads(str(arrays[_ABOUT]))
                if about == self._about:
                    return {name: arrays[name] for name in arrays.files if name != _ABOUT}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logging.warning("%s cannot be read, so this evaluation begins anew: %s", self._path, error)
            return None
        changed = sorted(name for name in about.keys() | self._about.keys()
                         if about.get(name) != self._about.get(name))
        logging.info("%s is of another evaluation (%s differs), so this one begins anew.", self._path,
                     ", ".join(changed))
        return None
