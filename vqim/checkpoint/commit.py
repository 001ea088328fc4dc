"""The protocol by which a step is saved completely or not at all.

On a POSIX file system a step is written in `<step>.tmp` and renamed when it is complete. An object store has no
rename in one step: there it is written in place. In both cases `commit.json` is written last, after everything
else is durable. A step exists if its directory has the final name and holds `commit.json`.
"""
from vqim.checkpoint import layout, seal
from vqim.checkpoint.files import Files


class Commit:
    """Makes, lists and removes the steps in a directory."""

    def __init__(self, files: Files, *, by_rename: bool) -> None:
        """Creates the protocol.

        Args:
          files: the directory.
          by_rename: whether to write under another name and rename; needs a file system.

        Raises:
          ValueError: the files cannot be renamed.
        """
        if by_rename and not files.can_rename:
            raise ValueError(f"by_rename must be False for {files.location}: an object store has no rename in one step")
        self.files = files
        self._by_rename = by_rename

    def working_name(self, step: int) -> str:
        """The directory in which a step is written."""
        return layout.temporary_name(step) if self._by_rename else layout.step_name(step)

    def is_committed(self, step: int) -> bool:
        """Whether the step exists."""
        return self.files.read(f"{layout.step_name(step)}/{layout.COMMIT_FILE}") is not None

    def steps(self) -> list[int]:
        """The steps that exist, in order."""
        found = (layout.parse_step(name) for name in self.files.children())
        return sorted(step for step in found if step is not None and self.is_committed(step))

    def publish(self, step: int, commit: bytes) -> None:
        """Makes the step exist. All its other files have been written to `working_name(step)`."""
        working, final = self.working_name(step), layout.step_name(step)
        self.files.sync(working)
        for path, expected in layout.from_json(commit, layout.COMMIT_FILE)["files"].items():
            seal.check(self.files.read(f"{working}/{path}"), expected, f"{self.files.location}/{working}/{path}")
        self.files.write(f"{working}/{layout.COMMIT_FILE}", commit)
        if self._by_rename:
            self.files.rename(working, final)

    def abandon(self, step: int) -> None:
        """Removes the files of a step that does not exist yet."""
        self.files.remove(self.working_name(step))

    def remove(self, step: int) -> bool:
        """Removes a step, unless it is being read. If interrupted, it leaves a leftover, never half a step.

        Returns:
          Whether it has been removed. Where files have no locks (an object store, some network mounts), a reader is
          not seen: it finds files missing, and has to open a newer step.
        """
        name = layout.step_name(step)
        hold = self.files.hold(name, shared=False)
        if hold is None:
            return False
        try:
            if self._by_rename:
                self.files.rename(name, layout.temporary_name(step))
                self.files.remove(layout.temporary_name(step))
            else:
                self.files.remove(f"{name}/{layout.COMMIT_FILE}")
                self.files.remove(name)
        finally:
            hold.release()
        return True

    def set_aside(self, step: int) -> str | None:
        """Takes a step out of the list of steps, and returns its new name; removes it where nothing can be renamed."""
        if not self.files.can_rename:
            self.files.remove(f"{layout.step_name(step)}/{layout.COMMIT_FILE}")
            self.files.remove(layout.step_name(step))
            return None
        there, name, number = self.files.children(), layout.aside_name(step), 2
        while name in there:  # what was set aside before is not lost
            name, number = layout.aside_name(step, number), number + 1
        self.files.rename(layout.step_name(step), name)
        return name

    def remove_leftovers(self) -> None:
        """Removes what interrupted saves and removals left. Only one process may call this, while none is saving."""
        for name in self.files.children():
            step = layout.parse_step(name)
            is_partial = step is not None and not self._by_rename and not self.is_committed(step)
            if is_partial or layout.parse_temporary(name) is not None:
                self.files.remove(name)
