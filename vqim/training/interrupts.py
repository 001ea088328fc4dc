"""Ctrl-C and SIGTERM as a wish to stop, of one process or of one among many, after a step that is the same for all."""
import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from absl import logging

from vqim.runtime.hosts import Hosts

_POLL_SECONDS = 0.2


class Interrupts:
    """While entered, SIGINT and SIGTERM set `requested`; a second one ends the process as it would have without.

    Args:
      hosts: the processes of the run.
      step: the last one that has been made.
    """

    def __init__(self, hosts: Hosts, step: int) -> None:
        self.requested: str | None = None
        self._previous: dict[int, object] = {}
        self._common = CommonStop(lambda: self.requested, hosts, step) if hosts.process_count > 1 else None

    def after(self, step: int) -> str | None:
        """The signal to stop on, if this step is the last one to be made; to be called after each, in every process."""
        return self._common.after(step) if self._common else self.requested

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
        when = "as soon as all hosts agree on a step" if self._common else "after this step"
        logging.warning("%s: saving and stopping %s; once more stops at once.", self.requested, when)
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]


class CommonStop:
    """Makes a wish of one process that of all, and has all stop after the same step.

    No step waits for it. A thread of each process looks out for a wish. Where it finds one, it posts the last step
    that its process has made, and holds up the end of the next one until it has those of all the others: the step
    after the largest of them is one that nobody has passed.

    Args:
      requested: says which signal this process has had, if any.
      hosts: the processes of the run; one `CommonStop` in the life of each.
      step: the last one that has been made.
    """

    def __init__(self, requested: Callable[[], str | None], hosts: Hosts, step: int) -> None:
        self._requested, self._hosts, self._step = requested, hosts, step
        self._signal: str | None = None
        self._stop_step: int | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="interrupts", daemon=True)

    def start(self) -> None:
        """Begins to look out."""
        self._thread.start()

    def after(self, step: int) -> str | None:
        """See `Interrupts.after`."""
        with self._lock:
            self._step = step
            return self._signal if step == self._stop_step else None

    def close(self) -> None:
        """Stops looking out; processes that find a wish later are told that this one makes no more steps."""
        self._closing.set()
        self._thread.join()
        if self._stop_step is None:
            with contextlib.suppress(RuntimeError):  # process 0, which holds the posts, has ended already
                self._post_step()

    def _watch(self) -> None:
        """Body of the thread."""
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
            self._post_step()
            steps = [int(self._hosts.get(f"stop/{index}")) for index in range(self._hosts.process_count)]
            self._signal, self._stop_step = self._hosts.get("stop"), max(steps) + 1
        logging.info("%s on one of %d hosts: all stop after step %d.", self._signal, len(steps), self._stop_step)

    def _post_step(self) -> None:
        self._hosts.post(f"stop/{self._hosts.process_index}", str(self._step))
