"""Reads ahead in threads, and returns results in order."""
import collections
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """`read(i)` for each i in a range, in order. An error in `read` is raised in place of its result."""

    def __init__(self, read: Callable[[int], T], indices: range, num_threads: int):
        """Reading starts with the first `next`: `num_threads` calls at a time, and the same number of results ready."""
        self._read, self._indices = read, iter(indices)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="read-ahead")
        self._num_ahead = 2 * num_threads
        self._results: collections.deque[Future[T]] = collections.deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        while len(self._results) < self._num_ahead:
            index = next(self._indices, None)
            if index is None:
                break
            self._results.append(self._pool.submit(self._read, index))
        if not self._results:
            self.close()
            raise StopIteration
        return self._results.popleft().result()

    def close(self) -> None:
        """Drops what was read ahead; do not call `next` after it."""
        self._pool.shutdown(wait=False, cancel_futures=True)
