"""Notices that a run hangs, and writes what every thread of every process is doing."""
import contextlib
import faulthandler
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator

from absl import logging

from vqim.checkpoint.files import is_url
from vqim.contracts.runtime import Hosts

EXIT_CODE = 70
"""The exit code of a process that is ended because it hangs."""

ENDED = "ended"
"""The post by which a process tells the others that it ends with an error, for which they would wait for ever."""

_FACTOR = 10.0
_GONE_SECONDS = 30.0
_POLL_SECONDS = 0.5


class Watchdog:
    """Watches steps, the data they wait for, saves, and batches of evaluations.

    One that takes ten times as long as the longest one before it of its kind, and at least `least_seconds`, is taken
    to hang. The first of each kind compile, and are not watched. When one process finds that it hangs, all of them
    write their stacks, to the log and to `<directory>/stacks_<process>.txt`: which of them is late shows why.

    When one process ends with an error, which it posts as `ENDED`, the others end themselves: their next step would
    wait for it. So they do when process 0 has been gone for half a minute, or another one, killed or with its machine,
    has given no sign of life for two minutes.

    Args:
      hosts: the processes of the run.
      directory: the run directory; if it is in an object store, stacks go to this machine's folder for temporary files.
      least_seconds: shorter steps never count as hanging.
      ends: whether a process that hangs ends itself, so that what started it can start it again.
      silent_seconds: how long a process may give no sign of life. A program that is traced or lowered can keep all
        Python threads of its process waiting for tens of seconds.
    """

    def __init__(
        self, hosts: Hosts, directory: str | os.PathLike[str], least_seconds: float = 300.0, ends: bool = False,
        silent_seconds: float = 120.0,
    ) -> None:
        self._hosts = hosts
        # A hanging process does not wait for an object store: on this machine, and in the log, they are safe.
        folder = tempfile.gettempdir() if is_url(directory) else directory
        self._path = os.path.join(folder, f"stacks_{hosts.process_index}.txt")
        self._least_seconds, self._ends, self._silent_seconds = least_seconds, ends, silent_seconds
        self._signs: dict[int, tuple[int, float]] = {}  # of other processes, and since when they are so many
        self._longest: dict[str, float] = {}
        self._ended: Counter[str] = Counter()  # how many of each kind
        self._now: tuple[str, float] | None = None  # what is being done, since when
        self._count = 0  # of the hangs that all processes have been told of
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._closing.set()
        self._thread.join()
        index = self._hosts.process_index
        with contextlib.suppress(RuntimeError):  # process 0, which keeps the posts, has ended already
            if kind is None:
                self._hosts.post(f"left/{index}", "yes")
            elif not issubclass(kind, Exception):  # such as by a second signal; errors are told by the loop
                self._hosts.post(ENDED, f"Process {index} was stopped at once ({kind.__name__})")

    @contextlib.contextmanager
    def watching(self, kind: str, compiles: bool = False) -> Iterator[None]:
        """A context in which one step, or another thing that is done again and again, has to end in time."""
        begin = time.monotonic()
        self._now = None if compiles or kind not in self._longest else (kind, begin)
        try:
            yield
        finally:
            self._now = None
        seconds = time.monotonic() - begin
        if compiles:
            return
        # The first of a kind may compile without saying so; it makes a limit, but the next may lower it.
        known = self._longest[kind] if self._ended[kind] > 1 else 0.0
        self._longest[kind] = max(known, seconds)
        self._ended[kind] += 1

    def _limit(self, kind: str) -> float:
        return max(self._least_seconds, _FACTOR * self._longest[kind])

    def _watch(self) -> None:
        """The body of the thread."""
        told = gone_since = None
        while not self._closing.wait(_POLL_SECONDS):
            now = self._now
            if now is not None and now != told and time.monotonic() - now[1] > self._limit(now[0]):
                told = now
                self._tell(f"process {self._hosts.process_index}: a {now[0]} has not ended after "
                           f"{time.monotonic() - now[1]:.0f} s; the longest before it took "
                           f"{self._longest[now[0]]:.1f} s")
            try:
                self._give_sign_of_life()
                self._look_for_silence()
                heard, ended, gone_since = self._hosts.read(f"hang/{self._count}"), self._hosts.read(ENDED), None
            except RuntimeError:  # process 0, which keeps the posts, has ended
                heard, ended, gone_since = None, None, gone_since or time.monotonic()
                if time.monotonic() - gone_since > _GONE_SECONDS:  # while this one still makes steps
                    ended = "process 0 has ended"
            if ended:
                logging.error("%s. All processes are needed for a step, so this one ends too; the same command goes on "
                              "from the newest checkpoint.", ended)
                os._exit(EXIT_CODE)
            if heard:
                self._count += 1
                self._write_stacks(heard)

    def _give_sign_of_life(self) -> None:
        self._hosts.count(f"alive/{self._hosts.process_index}", 1)

    def _look_for_silence(self) -> None:
        """Process 0 tells all when another one, which has begun and not ended, no longer gives signs of life."""
        if self._hosts.process_index:
            return
        for process in range(1, self._hosts.process_count):
            signs, now = self._hosts.count(f"alive/{process}"), time.monotonic()
            if signs and signs != self._signs.get(process, (0, now))[0]:
                self._signs[process] = signs, now
            elif signs and now - self._signs[process][1] > self._silent_seconds and not self._hosts.read(
                    f"left/{process}"):
                self._hosts.post(ENDED, f"Process {process} has given no sign of life for "
                                        f"{self._silent_seconds:g} s: it was killed, or its machine is gone")

    def _tell(self, text: str) -> None:
        try:
            self._hosts.post(f"hang/{self._count}", text)
        except RuntimeError:
            self._write_stacks(text)

    def _write_stacks(self, reason: str) -> None:
        logging.error("It hangs: %s. The stacks of all threads are in %s.", reason, self._path)
        try:
            with open(self._path, "a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {reason}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            logging.error("%s", error)
        faulthandler.dump_traceback(2, all_threads=True)
        if self._ends:
            logging.error("This process ends itself; the same command goes on from the newest checkpoint.")
            os._exit(EXIT_CODE)
