"""When a run is saved: every N steps, every M minutes, and again soon after a save that failed."""
import time
from collections.abc import Callable

from absl import logging

from vqim.checkpoint.errors import CheckpointError
from vqim.checkpoint.manager import CheckpointManager

MAX_FAILURES = 5
"""A run stops after this number of failed saves in a row."""

_FIRST_RETRY_SECONDS = 5.0


class Saver:
    """Counts what fails, and asks for saves by the clock.

    A failed save is tried again after 5, 20, 80 ... seconds, or with the next regular save if that comes first. All
    processes save at the same steps: process 0 has the clock, and `ask` makes all of them save at one step.

    Args:
      manager: writes the checkpoints.
      every: the number of steps between two saves.
      minutes: the time between two saves; None for no such limit.
      ask: asks all processes for a save (`Interrupts.ask_to_save`); None in processes without a clock.
    """

    def __init__(
        self, manager: CheckpointManager, every: int, minutes: float | None, ask: Callable[[], None] | None,
    ) -> None:
        self._manager, self._every, self._minutes, self._ask = manager, every, minutes, ask
        self._failures: list[CheckpointError] = []
        self._begun = False
        self._next: float | None = None
        self._schedule()

    def watch(self) -> None:
        """Asks for a save if it is time; to be called after each step, before all processes agree what to do."""
        if not self._manager.is_saving():
            self._settle()
        if self._ask is not None and self._next is not None and time.monotonic() >= self._next:
            self._next = None
            self._ask()

    def is_due(self, step: int) -> bool:
        """Whether this step is one that is always saved."""
        return step % self._every == 0

    def save(self, write: Callable[[], None]) -> None:
        """Saves by calling `write`, when the save before it has ended.

        Raises:
          CheckpointError: too many saves in a row have failed.
        """
        self._settle()
        self._refuse_too_many()
        write()
        self._begun = True
        self._schedule()

    def finish(self, write: Callable[[], None], is_hurried: Callable[[], bool] = lambda: False) -> None:
        """Waits for the last save; if it has failed, tries it again as often, and after as long, as any other.

        Args:
          write: saves.
          is_hurried: whether the process has been told to stop, and may soon be killed: then it waits for a second.

        Raises:
          CheckpointError: it has failed each time.
        """
        self._settle()
        while self._failures:
            self._refuse_too_many()
            while time.monotonic() < (self._next or 0.0) and not is_hurried():
                time.sleep(0.2)
            time.sleep(1.0 if is_hurried() else 0.0)
            write()
            self._begun = True
            self._settle()

    def _refuse_too_many(self) -> None:
        if len(self._failures) >= MAX_FAILURES:
            raise CheckpointError(f"{self._failures[-1]}. These were {MAX_FAILURES} failed saves in a row")

    def _settle(self) -> None:
        """Takes notice of how the last save has ended."""
        if not self._begun:
            return
        self._begun = False
        try:
            self._manager.wait()
        except CheckpointError as error:
            self._failures.append(error)
            seconds = _FIRST_RETRY_SECONDS * 4 ** (len(self._failures) - 1)
            if len(self._failures) < MAX_FAILURES:
                logging.warning("%s. Once more in %g s, or with the next regular save.", error, seconds)
            self._next = time.monotonic() + seconds
        else:
            self._failures.clear()

    def _schedule(self) -> None:
        self._next = None if self._minutes is None else time.monotonic() + 60 * self._minutes
