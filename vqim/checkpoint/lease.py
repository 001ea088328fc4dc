"""One prefix of an object store, one writer: a lock that its owner renews, and that expires with it.

The lock is an object, lock.json, that is only ever written on the condition that nobody else has changed it since. Its
owner writes it again every few seconds. Who finds one that stands still for longer than it lasts takes it over; the
former owner, if it lives after all, finds that out at its next renewal and ends at once, without saving.
"""
import json
import os
import socket
import threading
import time
import uuid
from types import TracebackType
from typing import Any

from absl import logging

from vqim.checkpoint.files import BucketFiles
from vqim.checkpoint.lock import FILE, LockedError, boot, parse, refusal, shown

EXIT_CODE = 71
"""The exit code of a process whose lock was taken over."""

_RENEW_SECONDS = 10.0
_LASTS_SECONDS = 60.0


class Lease:
    """Holds a prefix while the context lasts.

    Args:
      url: the prefix, such as s3://bucket/run.
      renew_seconds: the time between two renewals.
      lasts_seconds: the time after which a lock that is not renewed may be taken over.

    Raises, on entering:
      LockedError: another process holds it; the message says which, where, and since when.
      OSError: the object store refuses, or cannot be reached.
    """

    def __init__(self, url: str, renew_seconds: float = _RENEW_SECONDS, lasts_seconds: float = _LASTS_SECONDS) -> None:
        self._files = BucketFiles(url)
        self._renew_seconds, self._lasts_seconds = renew_seconds, lasts_seconds
        self._since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._token, self._generation = uuid.uuid4().hex, b""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        data, generation = self._files.read_generation(FILE)
        if data is not None:
            generation = self._when_abandoned(data, generation)
        owner = self._write(generation)
        if owner is not None:
            raise LockedError(refusal(self._files.location, owner))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()
        try:
            self._files.write_if(FILE, None, self._generation)
        except OSError as failure:
            logging.warning("%s/%s cannot be removed: %s", self._files.location, FILE, failure)

    def _write(self, generation: bytes) -> dict[str, Any] | None:
        """Writes the lock if it is still at `generation`; returns None, or the owner that it has instead."""
        # The time makes each renewal another object: S3 knows two with the same contents by the same name.
        text = json.dumps({"host": socket.gethostname(), "process": os.getpid(), "boot": boot(), "since": self._since,
                           "token": self._token, "renewed": time.time()})
        written = self._files.write_if(FILE, text.encode(), generation)
        if written is None:
            data, written = self._files.read_generation(FILE)
            owner = parse(data or b"")
            if owner.get("token") != self._token:  # else the answer to a write that succeeded was lost
                return owner
        self._generation = written
        return None

    def _when_abandoned(self, data: bytes, generation: bytes) -> bytes:
        """The generation of another's lock, when the other has ended; else LockedError."""
        owner = parse(data)
        if not _is_dead_here(owner):
            logging.warning("%s is locked by %s: waiting %g s for a sign of life.", self._files.location, shown(owner),
                            self._lasts_seconds)
            end = time.monotonic() + self._lasts_seconds
            while time.monotonic() < end:
                time.sleep(self._lasts_seconds / 60)
                data_now, now = self._files.read_generation(FILE)
                if data_now is None:
                    return now
                if now != generation:
                    raise LockedError(refusal(self._files.location, parse(data_now)))
        logging.warning("%s was locked by %s, which has ended: it is taken over.", self._files.location, shown(owner))
        return generation

    def _renew(self) -> None:
        """The body of the thread."""
        while not self._closing.wait(self._renew_seconds):
            try:
                owner = self._write(self._generation)
            except OSError as error:
                logging.warning("The lock of %s cannot be renewed: %s", self._files.location, error)
                continue
            if owner is not None:
                logging.error("The lock of %s was taken over by %s, since this process had not renewed it. It ends "
                              "now, and saves nothing.", self._files.location, shown(owner))
                os._exit(EXIT_CODE)


def _is_dead_here(owner: dict[str, Any]) -> bool:
    """Whether an owner is known to have ended: a process of this machine since it was started."""
    return (owner.get("boot"), owner.get("host")) == (boot(), socket.gethostname()) and not os.path.exists(
        f"/proc/{owner.get('process')}")
