"""Messages between the processes of a run, one per host, that do not use the devices, which are busy meanwhile."""
import datetime
import time
from collections import Counter

from torch.distributed import TCPStore

_POLL_SECONDS = 0.05


class OneHost:
    """The only process of a run; it never waits."""

    process_index = 0
    process_count = 1

    def __init__(self) -> None:
        self._posts: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def wait(self, name: str) -> None:
        """Returns at once."""

    def post(self, name: str, text: str) -> None:
        """See `Hosts.post`."""
        self._posts.setdefault(name, text)

    def read(self, name: str) -> str | None:
        """See `Hosts.read`."""
        return self._posts.get(name)

    def get(self, name: str) -> str:
        """See `Hosts.get`."""
        return self._posts[name]

    def count(self, name: str, more: int = 0) -> int:
        """See `Hosts.count`."""
        self._counts[name] += more
        return self._counts[name]


class HostNetwork:
    """Processes on several hosts, which communicate through a TCP store on the first host.

    Attributes:
      port: the port on which process 0 listens.
    """

    def __init__(
        self, host: str, port: int, process_index: int, process_count: int, timeout_seconds: float = 3600.0,
    ) -> None:
        """Connects to process 0, and waits until it listens.

        Args:
          host: name or address of process 0's machine.
          port: the port on which it listens; 0 lets process 0 choose one.
          process_index: the index of this process.
          process_count: the number of processes.
          timeout_seconds: how long a process waits for the others.
        """
        self.process_index, self.process_count = process_index, process_count
        self._timeout_seconds = timeout_seconds
        self._store = TCPStore(
            host, port, is_master=process_index == 0, wait_for_workers=False,
            timeout=datetime.timedelta(seconds=timeout_seconds))
        self.port = self._store.port
        self._visits: dict[str, int] = {}

    def wait(self, name: str) -> None:
        """See `Hosts.wait`."""
        visit = self._visits[name] = self._visits.get(name, 0) + 1
        self._meet(f"{name} came", visit, name)
        # Process 0 holds the store, so it may not continue, and end, while others still have to ask whether all came.
        if self.process_index == 0:
            self._meet(f"{name} left", visit, name)
        else:
            self._store.add(f"{name} left", 1)

    def post(self, name: str, text: str) -> None:
        """See `Hosts.post`."""
        self._store.compare_set(name, "", text)

    def read(self, name: str) -> str | None:
        """See `Hosts.read`."""
        return self._store.get(name).decode() if self._store.check([name]) else None

    def get(self, name: str) -> str:
        """See `Hosts.get`."""
        # The store's own method to wait for a name would block this process's other threads.
        end = time.monotonic() + self._timeout_seconds
        while (text := self.read(name)) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"nothing was posted as {name!r} within {self._timeout_seconds:g} s; look at the "
                                   "logs of the other processes")
            time.sleep(_POLL_SECONDS)
        return text

    def count(self, name: str, more: int = 0) -> int:
        """See `Hosts.count`."""
        return self._store.add(name, more)

    def _meet(self, key: str, visit: int, name: str) -> None:
        """Counts this process under `key`, and returns when all processes have been counted."""
        expected = visit * self.process_count
        arrived = self._store.add(key, 1)
        end = time.monotonic() + self._timeout_seconds
        while arrived < expected:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"barrier {name!r}: {arrived - expected + self.process_count} of {self.process_count} processes "
                    f"came within {self._timeout_seconds:g} s; look at the logs of the others")
            time.sleep(_POLL_SECONDS)
            arrived = self._store.add(key, 0)
