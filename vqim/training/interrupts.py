"""Turns Ctrl-C and SIGTERM into a request to stop. All processes of a run stop at the same place.

In the same way they save at the same place when a clock or a failed save asks for it.

A tick is a training step or a batch in an evaluation. All processes have the same ticks in the same order.
"""
import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from absl import logging

from vqim.contracts.runtime import Hosts

_POLL_SECONDS = 0.2
_SAVE = "save"


class Interrupts:
    """A context in which SIGINT and SIGTERM set `requested`; a second signal ends the process as usual.

    Args:
      hosts: the processes of the run.
    """

    def __init__(self, hosts: Hosts) -> None:
        self.requested: str | None = None
        self._previous: dict[int, object] = {}
        self._save_asked = self._save_now = False
        self._common = CommonStop(self._wish, hosts) if hosts.process_count > 1 else None

    def tick(self) -> str | None:
        """The signal that stops the run, if this tick is the last; to be called after every tick, in every process."""
        wish = self._common.tick() if self._common else self._wish()
        if wish == _SAVE:
            self._save_asked, self._save_now = False, True
            return None
        return wish

    def ask_to_save(self) -> None:
        """Asks all processes to save after the same tick, soon."""
        self._save_asked = True

    def saves_now(self) -> bool:
        """Whether the last tick is one after which all processes save; True once for each request."""
        now, self._save_now = self._save_now, False
        return now

    def _wish(self) -> str | None:
        return self.requested or (_SAVE if self._save_asked else None)

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        if self._common:
            self._common.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        if self._common:
            self._common.close()
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        when = "as soon as all hosts agree where" if self._common else "after this step"
        logging.warning("%s: saving and stopping %s; once more stops at once.", self.requested, when)
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]


class CommonStop:
    """Passes a wish from one process to all, so that all act on it after the same tick.

    Normal ticks do not wait. A thread in each process watches for a wish. When it finds one, it posts the number of
    ticks that its process has made, and blocks the next tick until it has the numbers of all other processes. All
    processes then act after the tick that follows the largest number, which no process has passed yet. Then the next
    round begins, in which there may be another wish.

    Args:
      requested: returns what this process wishes, such as the signal that it has received, or None.
      hosts: the processes of the run; each may create one `CommonStop` in its life.
    """

    def __init__(self, requested: Callable[[], str | None], hosts: Hosts) -> None:
        self._requested, self._hosts, self._ticks, self._round = requested, hosts, 0, 0
        self._common: str | None = None
        self._last_tick: int | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="interrupts", daemon=True)

    def start(self) -> None:
        """Starts the thread that watches for requests."""
        self._thread.start()

    def tick(self) -> str | None:
        """The wish to act on after this tick, in every process; mostly None."""
        with self._lock:
            self._ticks += 1
            if self._ticks != self._last_tick:
                return None
            self._last_tick, self._round = None, self._round + 1
            return self._common

    def close(self) -> None:
        """Stops watching. Processes that find a request later learn that this one makes no more ticks."""
        self._closing.set()
        self._thread.join()
        if self._last_tick is None:
            with contextlib.suppress(RuntimeError):  # process 0, which keeps the posts, has already ended
                self._post_ticks()

    def _watch(self) -> None:
        """The body of the thread."""
        try:
            while not self._closing.wait(_POLL_SECONDS):
                if self._last_tick is not None:
                    continue  # all have agreed, and the tick is still to come
                if wish := self._requested():
                    self._hosts.post(self._name(), wish)
                if self._hosts.read(self._name()):
                    self._agree()
        except (RuntimeError, TimeoutError) as error:
            logging.error("The other hosts cannot be asked whether to stop, so signals only stop at once: %s", error)

    def _agree(self) -> None:
        with self._lock:
            self._post_ticks()
            ticks = [int(self._hosts.get(f"{self._name()}/{index}")) for index in range(self._hosts.process_count)]
            self._common, self._last_tick = self._hosts.get(self._name()), max(ticks) + 1
        logging.info("%s on one of %d hosts: all act at the same place.", self._common, len(ticks))

    def _post_ticks(self) -> None:
        self._hosts.post(f"{self._name()}/{self._hosts.process_index}", str(self._ticks))

    def _name(self) -> str:
        return f"stop/{self._round}"
