"""Where the processes of a run wait for each other without their devices, which are busy meanwhile."""
import datetime
import time

from torch.distributed import TCPStore

_POLL_SECONDS = 0.05


class HostBarrier:
    """A meeting point of all processes over the host network.

    Any thread may wait in it, but one thread of a process at a time. A name may be used again.

    Attributes:
      port: on which process 0 listens.
    """

    def __init__(
        self, host: str, port: int, process_index: int, process_count: int, timeout_seconds: float = 3600.0,
    ) -> None:
        """Connects to process 0, which everyone waits for.

        Args:
          host: name or address of process 0's machine.
          port: on which it listens; 0 lets it choose one.
          process_index: which of the processes this is.
          process_count: how many there are.
          timeout_seconds: for how long a process waits for the others.
        """
        self._process_count, self._timeout_seconds = process_count, timeout_seconds
        self._is_host = process_index == 0
        self._store = TCPStore(
            host, port, is_master=self._is_host, wait_for_workers=False,
            timeout=datetime.timedelta(seconds=timeout_seconds))
        self.port = self._store.port
        self._visits: dict[str, int] = {}

    def wait(self, name: str) -> None:
        """Returns when every process has called it with this name, as often as this one has.

        Raises:
          TimeoutError: some did not come in time.
        """
        visit = self._visits[name] = self._visits.get(name, 0) + 1
        self._meet(f"{name} came", visit, name)
        # Process 0 holds the store: it may not go on, and end, while others still have to ask whether all came.
        if self._is_host:
            self._meet(f"{name} left", visit, name)
        else:
            self._store.add(f"{name} left", 1)

    def _meet(self, key: str, visit: int, name: str) -> None:
        """Counts this process under `key`, and returns when all have been counted."""
        expected = visit * self._process_count
        arrived = self._store.add(key, 1)
        end = time.monotonic() + self._timeout_seconds
        while arrived < expected:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"barrier {name!r}: {arrived - expected + self._process_count} of {self._process_count} processes "
                    f"came within {self._timeout_seconds:g} s; look at the logs of the others")
            time.sleep(_POLL_SECONDS)
            arrived = self._store.add(key, 0)
