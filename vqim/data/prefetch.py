"""Reading ahead in threads, in order: the one place that knows grain.

grain's own shuffling, slicing and batching are not used. One grain record is a whole batch: what grain costs for each
record (tens of microseconds) is then paid once a batch, and the order is ours (`vqim.data.order`), so that it does not
depend on the number of processes, and neighbouring seeds share no epoch.
"""
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

from absl import logging

_verbosity = logging.get_verbosity()
logging.set_verbosity(logging.ERROR)  # grain warns that jax is not installed; its profiler alone would want it
import grain  # noqa: E402

logging.set_verbosity(_verbosity)

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """`read(i)` for each i of a range, in order. An error of `read` is raised where its result would have come."""

    def __init__(self, read: Callable[[int], T], indices: range, num_threads: int):
        """Starts with the first `next`: `num_threads` calls at a time, as many results again kept ready."""
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
        records = grain.MapDataset.range(indices.start, indices.stop, indices.step).map(read)
        self._results: Any = iter(records.to_iter_dataset(options))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        result: T = next(self._results)
        return result

    def close(self) -> None:
        """Drops what was read ahead; `next` must not follow."""
        self._results.close()
