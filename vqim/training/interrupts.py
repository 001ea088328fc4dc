"""Turns Ctrl-C and SIGTERM into a request to stop. All processes of a run stop at the same place.

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


class Interrupts:
    """A context in which SIGINT and SIGTERM set `requested`; a second signal ends the process as usual.

    Args:
      hosts: the processes of the run.
    """

    def __init__(self, hosts: Hosts) -> None:
        self.requested: str | None = None
        self._previous: dict[int, object] = {}
        self._common = CommonStop(lambda: self.requested, hosts) if hosts.process_count > 1 else None

    def tick(self) -> str | None:
        """The signal that stops the run, if this tick is the last; to be called after every tick, in every process."""
        return self._common.tick() if self._common else self.requested

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
    """Passes a request to stop from one process to all, so that all stop after the same tick.

    Normal ticks do not wait. A thread in each process watches for a request. When it finds one, it posts the number of
    ticks that its process has made, and blocks the next tick until it has the numbers of all other processes. All
    processes then stop after the tick that follows the largest number, which no process has passed yet.

    Args:
      requested: returns the signal that this process has received, or None.
      hosts: the processes of the run; each may create one `CommonStop` in its life.
    """

    def __init__(self, requested: Callable[[], str | None], hosts: Hosts) -> None:
        self._requested, self._hosts, self._ticks = requested, hosts, 0
        self._signal: str | None = None
        self._last_tick: int | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="interrupts", daemon=True)

    def start(self) -> None:
        """Starts the thread that watches for requests."""
        self._thread.start()

    def tick(self) -> str | None:
        """See `Interrupts.tick`."""
        with self._lock:
            self._ticks += 1
            return self._signal if self._ticks == self._last_tick else None

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
                if wish := self._requested():
                    self._hosts.post("stop", wish)
                if self._hosts.read("stop"):
                    self._agree()
                    return
        except (RuntimeError, TimeoutError) as error:
            logging.error("The other hosts cannot be asked whether to stop, so signals only stop at once: %s", error)

    def _agree(self) -> None:
        with self._lock:
            self._post_ticks()
            ticks = [int(self._hosts.get(f"stop/{index}")) for index in range(self._hosts.process_count)]
            self._signal, self._last_tick = self._hosts.get("stop"), max(ticks) + 1
        logging.info("%s on one of %d hosts: all stop at the same place.", self._signal, len(ticks))

    def _post_ticks(self) -> None:
        self._hosts.post(f"stop/{self._hosts.process_index}", str(self._ticks))
