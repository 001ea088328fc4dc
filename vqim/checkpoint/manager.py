"""The checkpoints of one run: saves in the background, commits atomically, removes old ones.

The problem: training must not wait while large arrays are written, a crash at any time must leave the last checkpoint
readable, and many processes on many hosts write the same checkpoint. This file is the public entrance; the parts are in
files of their own. Read them in this order: layout.py (which files a checkpoint has), commit.py (when a step exists),
plan.py (which process writes which part), store.py (arrays on disk), saving.py (one save, all processes together),
reader.py (opening a step) and policy.py (which steps are kept).

To know before: a process holds only its shards of each array. `save` does not copy the arrays: it starts a thread that
runs `Saving.run`, and errors from the thread are raised by the next `save` or `wait`.
"""
import copy
import errno
import os
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from absl import logging

from vqim.checkpoint import layout, seal
from vqim.checkpoint.commit import Commit
from vqim.checkpoint.errors import CheckpointError, NoCheckpointError
from vqim.checkpoint.files import open_files
from vqim.checkpoint.policy import Keep, Saved, kept_steps
from vqim.checkpoint.reader import Checkpoint, read_saved
from vqim.checkpoint.saving import Barrier, Save, Saving
from vqim.checkpoint.store import HostArray

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NAME = re.compile(r"[^/]+(/[^/]+)*")


class CheckpointManager:
    """Saves, lists, opens and removes the steps in a directory.

    A manager that never saves changes nothing on disk, so an evaluation may open the checkpoints of a run that is
    still training.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: Sequence[Keep] = (),
        process_index: int = 0,
        process_count: int = 1,
        barrier: Barrier | None = None,
        by_rename: bool | None = None,
    ) -> None:
        """Creates the manager; the directory itself is created by the first save.

        Args:
          directory: where the steps are: a path that all processes see, or a URL such as gs://bucket/run/checkpoints.
          keep: policies. A step is kept if any of them keeps it, or if it is the newest. Without policies all are kept.
          process_index: the index of this process.
          process_count: the number of processes that save together.
          barrier: called from the saving thread with a name; returns when every process has called it with that name.
            It must not use the devices, which are training at the same time; so no collective operations.
          by_rename: whether to commit by renaming. The default is to rename on file systems and not in object stores;
            False is for a bucket that is mounted as a file system, where renaming is not atomic.

        Raises:
          ValueError: an argument is out of its range.
        """
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index must be in [0, {process_count}), got {process_index}")
        if process_count > 1 and barrier is None:
            raise ValueError(f"barrier must be given for {process_count} processes, got None")
        self._files = open_files(directory)
        self._commit = Commit(self._files, by_rename=self._files.can_rename if by_rename is None else by_rename)
        self._keep = tuple(keep)
        self._process_index = process_index
        self._saving = Saving(self._commit, process_index, process_count, barrier or (lambda name: None))
        self._thread: threading.Thread | None = None
        self._failure: _Failure | None = None

    def save(
        self,
        step: int,
        arrays: Mapping[str, HostArray],
        metadata: Mapping[str, object],
        *,
        metrics: Mapping[str, float] | None = None,
        config: str,
        data_position: Mapping[str, object],
        prune: bool = True,
    ) -> None:
        """Starts to save a step and returns. It first waits for an earlier save. A step that exists is not saved again.

        Every process calls this, with the same step and the same names.

        Args:
          step: the number of training steps done.
          arrays: this process's part of every array, in memory that does not change until the save is finished.
          metadata: what to record besides the arrays, such as seed, mesh and git commit; JSON.
          metrics: numbers that `KeepBest` compares.
          config: the run's gin config as text.
          data_position: this process's position in the data; JSON.
          prune: whether steps that no policy keeps are removed when this one is saved. A save in an emergency removes
            nothing: what it saves may be no good.

        Raises:
          CheckpointError: the earlier save failed. This one has not been started.
          ValueError: an argument cannot be saved.
        """
        self.wait()
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"step must be an integer of at least 0, got {step!r}")
        for name in arrays:
            if not _NAME.fullmatch(name):
                raise ValueError(f"arrays must have names like 'params/encoder/bias', got {name!r}")
        layout.check_extra_metadata(metadata)
        save = Save(step, dict(arrays), copy.deepcopy(dict(metadata)), config,
                    layout.to_json("data_position", data_position), layout.finite(metrics or {}))
        try:
            if self._commit.is_committed(step):
                logging.info("Checkpoint %s exists already and is not saved again.", self._path(step))
                return
        except OSError as error:  # an object store that cannot be reached
            self._failure = _Failure(step, save.num_bytes, error)
            return
        # Not a daemon thread: a program that ends in the middle of a save finishes it.
        self._thread = threading.Thread(target=self._run, args=(save, prune), name=f"checkpoint-{step}")
        self._thread.start()

    def wait(self) -> None:
        """Returns when no save is running.

        Raises:
          CheckpointError: the last save failed. It is raised once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise CheckpointError(self._explain(failure)) from failure.error

    def is_saving(self) -> bool:
        """Whether a save is running; does not wait."""
        return self._thread is not None and self._thread.is_alive()

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds results of evaluations to a saved step, for `KeepBest`, and applies the policies. Process 0 does it.

        It waits for a save that is running, but leaves its failure to `wait`. A step that is not saved is left alone.

        Raises:
          OSError: they cannot be written. The step itself is whole.
        """
        if self._thread is not None:
            self._thread.join()
        if self._process_index != 0 or not self._commit.is_committed(step):
            return
        known = self._saved(step).metrics
        new = layout.finite(metrics)
        if not new.items() <= known.items():
            self._files.write(f"{layout.step_name(step)}/{layout.MEASURED_FILE}",
                              seal.seal(layout.MEASURED_FILE, {"step": step, "metrics": {**known, **new}}))
            self._remove_old()

    def remove(self, step: int) -> bool:
        """Removes a step, unless it is being read; returns whether it did."""
        return self._commit.remove(step)

    def set_aside_after(self, step: int) -> None:
        """Takes all newer steps out of the list: the run goes on from this one, and will save them anew."""
        for newer in [found for found in self.steps() if found > step]:
            where = self._commit.set_aside(newer)
            logging.warning("Checkpoint %s, which is newer, is %s.", self._path(newer),
                            f"kept as {where}" if where else "removed")

    def steps(self) -> list[int]:
        """The committed steps, in order."""
        return self._commit.steps()

    def latest_step(self) -> int | None:
        """The newest committed step; None if there is none."""
        return max(self.steps(), default=None)

    def open(self, step: int | Literal["latest_valid"] | None = None, *, needed: str | None = None) -> Checkpoint:
        """Opens a committed step.

        Args:
          step: its number; None is the newest, 'latest_valid' the newest in which all that is needed is whole.
          needed: regular expression for the names of the arrays that have to be whole; by default all.

        Raises:
          NoCheckpointError: there is no checkpoint, or not this one; the message says what was found.
          CheckpointError: the checkpoint is damaged, or was written by a newer version.
        """
        steps = self.steps()
        if not steps:
            raise NoCheckpointError(f"{self._files.location} has no committed checkpoint; {self._found()}")
        if step == "latest_valid":
            return self._open_valid(steps, needed)
        if step is not None and step not in steps:
            raise NoCheckpointError(f"{self._files.location} has no committed step {step}; it has {steps}")
        chosen = steps[-1] if step is None else step
        try:
            return Checkpoint(self._files, chosen)
        except CheckpointError:
            # A run that is training may have removed it since the list was made, and then has a newer one.
            if self._commit.is_committed(chosen) or step is not None:
                raise
        return self.open(None)

    def _open_valid(self, steps: list[int], needed: str | None) -> Checkpoint:
        problems: list[str] = []
        for step in reversed(steps):
            try:
                checkpoint = Checkpoint(self._files, step)
                found = checkpoint.verify(needed)
            except CheckpointError as error:
                found = [str(error)]
            if not found:
                return checkpoint
            logging.warning("Step %d is passed over: %s", step, "; ".join(found[:3]))
            problems += found
        raise CheckpointError(f"{self._files.location} has no whole checkpoint: " + "; ".join(problems[:5]))

    def _run(self, save: Save, prune: bool) -> None:
        """The body of the saving thread."""
        try:
            self._saving.run(save)
        except Exception as error:
            logging.error("Checkpoint %s was not saved: %s", self._path(save.step), error)
            self._failure = _Failure(save.step, save.num_bytes, error)
            return
        logging.info("Saved checkpoint %s.", self._path(save.step))
        if self._process_index == 0 and prune:
            try:
                self._remove_old()
            except Exception as error:
                logging.warning("Older checkpoints could not be removed: %s", error)

    def _remove_old(self) -> None:
        steps = self.steps()
        for step in sorted(set(steps) - kept_steps(self._keep, [self._saved(step) for step in steps])):
            if self._commit.remove(step):
                logging.info("Removed checkpoint %s.", self._path(step))
            else:
                logging.info("Checkpoint %s is being read; it is removed later.", self._path(step))

    def _saved(self, step: int) -> Saved:
        """A step as policies see it."""
        return read_saved(self._files, step)

    def _explain(self, failure: "_Failure") -> str:
        """The error message for a failed save."""
        path, error = self._path(failure.step), failure.error
        try:
            latest = self.latest_step()
            whole = ("there is no earlier checkpoint" if latest is None else
                     f"checkpoint {self._path(latest)} is whole, and the run resumes from it")
        except OSError:
            whole = "which earlier checkpoint is whole cannot be read either"
        if not isinstance(error, OSError) or error.errno not in _NO_SPACE:
            return f"checkpoint {path} was not saved: {error}; {whole}"
        free = self._files.free_bytes()
        room = "" if free is None else f", where {_mib(free)} are free now"
        return (f"checkpoint {path} was not saved: {os.strerror(error.errno)}; {whole}. Arrays of "
                f"{_mib(failure.num_bytes)} were to be written to {self._files.location}{room}")

    def _found(self) -> str:
        children = self._files.children()
        if not children:
            return "it is empty or does not exist"
        shown = ", ".join(children[:8]) + (", ..." if len(children) > 8 else "")
        return f"it holds {shown} (a step is a directory like {layout.step_name(1000)} with {layout.COMMIT_FILE} in it)"

    def _path(self, step: int) -> str:
        return f"{self._files.location}/{layout.step_name(step)}"


class _Failure(NamedTuple):
    """An error in the saving thread, without the arrays, whose memory is freed."""

    step: int
    num_bytes: int
    error: Exception


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
