"""One directory, one writer: a lock that names its owner and that the next one takes over when the owner is dead.

On one machine the kernel keeps the lock (flock) and ends it with the process. Other machines that share the directory
see a file whose time its owner renews; if that stands still, the owner is taken to be dead. lease.py has the lock of an
object store.
"""
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from absl import logging

FILE = "lock.json"

_RENEW_SECONDS = 5.0
_DEAD_SECONDS = 30.0


class LockedError(RuntimeError):
    """Another process writes into the directory."""


class Lock:
    """Holds a directory while the context lasts; the directory has to exist.

    Raises, on entering:
      LockedError: another process holds it; the message says which, where, and since when.
      OSError: the lock file cannot be written.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._path = Path(directory) / FILE
        self._descriptor = -1
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)

    def __enter__(self) -> "Lock":
        self._descriptor, is_known_free = self._open()
        try:
            owner = parse(os.pread(self._descriptor, 4096, 0))
            if owner:
                self._refuse_living(owner, is_known_free)
                logging.warning("%s was left by %s, which has ended: it is taken over.", self._path, shown(owner))
            text = json.dumps({"host": socket.gethostname(), "process": os.getpid(), "boot": boot(),
                               "since": time.strftime("%Y-%m-%d %H:%M:%S")}) + "\n"
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)
            os.fsync(self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _open(self) -> tuple[int, bool]:
        """The file, and whether it is known that no living process of this machine has it."""
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = parse(os.pread(descriptor, 4096, 0))
                os.close(descriptor)
                raise LockedError(refusal(self._path.parent, owner)) from error
            except OSError:
                return descriptor, False  # a file system without such locks
            try:
                if os.stat(self._path).st_ino == os.fstat(descriptor).st_ino:
                    return descriptor, True
            except FileNotFoundError:
                pass
            os.close(descriptor)  # its owner removed it in the meantime

    def _refuse_living(self, owner: dict[str, Any], is_known_free: bool) -> None:
        if owner.get("boot") == boot():
            if not is_known_free and os.path.exists(f"/proc/{owner.get('process')}"):
                raise LockedError(refusal(self._path.parent, owner))
            return
        logging.warning("%s was written by %s: waiting %g s for a sign of life.", self._path, shown(owner),
                        _DEAD_SECONDS)
        before, end = os.stat(self._path).st_mtime_ns, time.monotonic() + _DEAD_SECONDS
        while time.monotonic() < end:
            time.sleep(0.2)
            if os.stat(self._path).st_mtime_ns != before:
                raise LockedError(refusal(self._path.parent, owner))

    def _renew(self) -> None:
        """The body of the thread."""
        while not self._closing.wait(_RENEW_SECONDS):
            try:
                os.utime(self._descriptor)
            except OSError as error:
                logging.warning("%s cannot be renewed: %s", self._path, error)


def parse(data: bytes) -> dict[str, Any]:
    """What a lock file says; nothing if it is empty or cut short, as a process that was just starting leaves it."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def shown(owner: dict[str, Any]) -> str:
    """An owner in words."""
    return f"process {owner.get('process')} on {owner.get('host')} (since {owner.get('since')})"


def refusal(directory: str | Path, owner: dict[str, Any]) -> str:
    """The words that refuse a directory to a second writer."""
    return (f"{directory} is being written by {shown(owner) if owner else 'a process that is just starting'}. "
            "Stop that one first, or name another directory")


def boot() -> str:
    """Changes when this machine is started anew; where that is not told, the host's name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
