"""One save in stages, which all processes run together."""
import dataclasses
import time
from collections.abc import Callable, Mapping

from absl import logging

from vqim.checkpoint import layout, seal, store
from vqim.checkpoint.commit import Commit
from vqim.checkpoint.files import Hold
from vqim.checkpoint.plan import ArrayPlan, Held, make_plan
from vqim.checkpoint.store import HostArray

Barrier = Callable[[str], None]  # returns when every process has called it with this name


@dataclasses.dataclass(frozen=True)
class Save:
    """One process's part of a checkpoint.

    Attributes:
      step: the number of the checkpoint.
      arrays: everything that this process holds.
      metadata: the run's own fields for metadata.json; those of process 0 are used.
      config: the gin config as text; that of process 0 is used.
      data_position: the contents of this process's data file.
      metrics: finite numbers for the commit file; those of process 0 are used.
    """

    step: int
    arrays: Mapping[str, HostArray]
    metadata: Mapping[str, object]
    config: str
    data_position: bytes
    metrics: Mapping[str, float]

    @property
    def num_bytes(self) -> int:
        """The bytes of the shards that this process holds."""
        return sum(values.nbytes for array in self.arrays.values() for _, values in array.shards)


class Saving:
    """Runs saves in one process.

    The stages, with a barrier after each:
      begin    process 0 removes leftovers of interrupted saves
      shards   every process writes which shards it holds
      arrays   every process reads all of these, makes the same plan, writes its arrays, and last its data position
      commit   process 0 checks that all positions are there, merges, writes config and metadata, and commits
    A process that fails still goes to the barriers, so that the others do not wait for ever. Its missing data position
    tells process 0 not to commit, and the missing commit tells the others.
    """

    def __init__(self, commit: Commit, process_index: int, process_count: int, barrier: Barrier) -> None:
        self._commit = commit
        self._files = commit.files
        self._process_index = process_index
        self._process_count = process_count
        self._barrier = barrier
        self._leftovers_removed = False
        self._hold: Hold | None = None

    def run(self, save: Save) -> None:
        """Saves and commits.

        Raises:
          OSError, ValueError: the step was not committed; its files have been removed.
        """
        working = self._commit.working_name(save.step)
        plan: dict[str, ArrayPlan] = {}

        def begin() -> None:
            if self._process_index == 0:
                self._hold = self._held()
                if not self._leftovers_removed:
                    self._commit.remove_leftovers()
                    self._leftovers_removed = True

        def shards() -> None:
            self._write_shards(working, save)

        def arrays() -> None:
            plan.update(make_plan([self._read_shards(working, process) for process in range(self._process_count)]))
            store.write_arrays(self._files, working, self._process_index, save.arrays, plan)
            self._files.write(f"{working}/{layout.data_file(self._process_index)}", save.data_position)

        def commit() -> None:
            if self._process_index == 0:
                self._finish(working, save, plan)

        try:
            self._run_stages(save.step, (begin, shards, arrays, commit))
        finally:
            self._hold = None
        if not self._commit.is_committed(save.step):
            raise OSError(f"expected process 0 to commit step {save.step}, it did not: see the error in its log, and "
                          "start the run again from the last committed step")

    def _run_stages(self, step: int, stages: tuple[Callable[[], None], ...]) -> None:
        """Runs stages until one fails, and meets the other processes after each; then raises the failure."""
        error: Exception | None = None
        for stage in stages:
            if error is None:
                try:
                    stage()
                except Exception as raised:
                    error = raised
            if error is not None and stage is stages[-1] and self._hold is not None:
                self._abandon(step)
            self._barrier(f"checkpoint/{step}/{stage.__name__}")
        if error is not None:
            raise error

    def _held(self) -> Hold:
        """Holds the directory, so that no other program removes what this one is writing."""
        hold = self._files.hold("", shared=False)
        if hold is None:
            raise OSError(f"another program is saving into {self._files.location}; one run has one directory")
        return hold

    def _abandon(self, step: int) -> None:
        """Removes the partial step; if that also fails, the next start removes it."""
        try:
            self._commit.abandon(step)
        except OSError as error:
            logging.warning("The partial checkpoint of step %d could not be removed: %s", step, error)

    def _write_shards(self, working: str, save: Save) -> None:
        held = {name: array.held()._asdict() for name, array in save.arrays.items()}
        self._files.write(f"{working}/{layout.shards_file(self._process_index)}", layout.to_json("shards", held))

    def _read_shards(self, working: str, process: int) -> dict[str, Held]:
        path = f"{working}/{layout.shards_file(process)}"
        data = self._files.read(path)
        if data is None:
            raise OSError(f"process {process} wrote no {path}; do all processes see the same directory?")
        return {
            name: Held(tuple(held["shape"]), held["dtype"], held["itemsize"],
                       tuple(tuple((start, stop) for start, stop in box) for box in held["boxes"]))
            for name, held in layout.from_json(data, path).items()
        }

    def _finish(self, working: str, save: Save, plan: Mapping[str, ArrayPlan]) -> None:
        missing = [process for process in range(self._process_count)
                   if self._files.read(f"{working}/{layout.data_file(process)}") is None]
        if missing:
            raise OSError(f"processes {missing} did not finish writing; their own messages say why")
        store.merge(self._files, working, self._process_count)
        self._files.write(f"{working}/{layout.CONFIG_FILE}", save.config.encode())
        self._files.write(f"{working}/{layout.METADATA_FILE}", layout.encode_metadata(
            save.step, self._process_count, {name: array.spec for name, array in plan.items()}, save.metadata))
        small = [layout.CONFIG_FILE, layout.METADATA_FILE, *(
            name(process) for process in range(self._process_count) for name in (layout.data_file, layout.shards_file))]
        digests = {path: seal.digest(seal.check(self._files.read(f"{working}/{path}"), None, path)) for path in small}
        self._commit.publish(save.step, seal.seal(layout.COMMIT_FILE, {
            "schema_version": layout.SCHEMA_VERSION, "step": save.step, "saved_at": round(time.time(), 3),
            "metrics": save.metrics, "files": digests}))
