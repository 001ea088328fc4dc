"""Batches for one process: endless training batches with an exact position, and evaluation passes.

A `ReadBatch` decides what a batch contains; this module decides which examples it reads.

    B batch per process
"""
import sys
from collections.abc import Iterator, Sized
from typing import Any, Protocol

import numpy as np

from vqim.contracts.data import Batch
from vqim.data.order import host_positions, shuffled
from vqim.data.prefetch import ReadAhead


class ReadBatch(Protocol):
    """Reads examples into arrays. Called from several threads; the same arguments must give the same arrays."""

    def __call__(self, epochs_B: np.ndarray, records_B: np.ndarray) -> Batch:
        """Returns arrays with first dimension B, including `valid`, bool [B].

        Args:
          epochs_B: how often each example was seen before (int64); augmentation may depend on it.
          records_B: the examples' indices in the data set (int64).
        """
        ...


class Loader:
    """Endless shuffled training batches, reproducible from the seed and a position.

    Every epoch has each example once, in its own order. A batch may hold the end of one epoch and the beginning of
    the next, so that no example is dropped. `next(loader)` gives this process's part of a global batch.
    """

    def __init__(
        self, read: ReadBatch, num_examples: int, batch_size: int, seed: int, *,
        process_index: int = 0, process_count: int = 1, num_threads: int = 1, corrupt: Sized | None = None,
    ):
        """Starts at the beginning of epoch 0; reading ahead begins with the first `next`.

        Args:
          read: reads a batch.
          num_examples: the number of examples in the data set, over all processes.
          batch_size: the number of examples in a batch of this process.
          seed: seed for order and augmentation.
          process_index: the index of this process.
          process_count: the number of processes that share the data set.
          num_threads: the number of batches read at the same time; the same number of finished batches is kept ready.
          corrupt: an object whose length is the number of skipped examples.

        Raises:
          ValueError: an argument is out of range.
        """
        check_share(batch_size, process_index, process_count)
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed: expected an integer >= 0, got {seed!r}")
        self._read = read
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._seed = seed
        self._process = (process_index, process_count)
        self._global_batch_size = batch_size * process_count
        self._num_threads = num_threads
        self._corrupt = corrupt
        self._next_example = 0
        self._batches = self._read_from(0)

    @property
    def num_skipped(self) -> int:
        """Corrupt examples that this process has met so far, each counted once."""
        return len(self._corrupt) if self._corrupt is not None else 0

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._next_example += self._global_batch_size
        return batch

    def position(self) -> dict[str, int]:
        """The position in the stream, as values that JSON can hold; the same on every process."""
        return {"next_example": self._next_example, "num_examples": self._num_examples, "seed": self._seed}

    def restore(self, position: dict[str, Any]) -> None:
        """Continues from a `position()`: the next batch is the one that would have followed it.

        The position counts examples, so it may come from a run with other batch sizes or another number of processes.

        Raises:
          ValueError: the position belongs to another data set or seed.
        """
        for name, own in (("num_examples", self._num_examples), ("seed", self._seed)):
            if position.get(name) != own:
                raise ValueError(f"cannot continue from data position {position}: its {name} is "
                                 f"{position.get(name)}, this loader's is {own}. Restore with the data set and seed "
                                 "that the position was saved with.")
        self.close()
        self._next_example = int(position["next_example"])
        self._batches = self._read_from(self._next_example)

    def close(self) -> None:
        """Stops reading ahead. Only `restore` may follow."""
        self._batches.close()

    def _read_from(self, first: int) -> ReadAhead[Batch]:
        def read(batch_first: int) -> Batch:
            positions_B = host_positions(batch_first, self._batch_size, *self._process)
            return self._read(*shuffled(positions_B, self._num_examples, self._seed))

        return ReadAhead(read, range(first, sys.maxsize, self._global_batch_size), self._num_threads)


class Evaluation:
    """One pass over a data set in its own order, as often as it is iterated over; all batches have the same shape.

    Every process has the same number of batches. If there are too few examples, the last batches are padded with zeros,
    where `valid` is False.
    """

    def __init__(
        self, read: ReadBatch, num_examples: int, batch_size: int, *, num_epochs: int = 1,
        process_index: int = 0, process_count: int = 1, num_threads: int = 1, corrupt: Sized | None = None,
        first_batch: int = 0, num_chosen: int | None = None,
    ):
        """Reads nothing yet; see `Loader` for the arguments.

        Args:
          num_epochs: the number of times that each example comes; `read` gets the epoch.
          first_batch: the number of the first batch; those before it are left out.
          num_chosen: the number of examples that come, evenly spaced over all; None takes all.
        """
        check_share(batch_size, process_index, process_count)
        if num_epochs < 1:
            raise ValueError(f"num_epochs: expected an integer >= 1, got {num_epochs}")
        self._read = read
        self._num_examples = num_examples
        self._num_chosen = num_examples if num_chosen is None else min(num_chosen, num_examples)
        self._num_positions = self._num_chosen * num_epochs
        self._batch_size = batch_size
        self._process = (process_index, process_count)
        self._global_batch_size = batch_size * process_count
        self._num_threads = num_threads
        self._corrupt = corrupt
        self._first = first_batch * self._global_batch_size

    @property
    def num_skipped(self) -> int:
        """Corrupt examples that this process has met so far, each counted once."""
        return len(self._corrupt) if self._corrupt is not None else 0

    def __len__(self) -> int:
        return max(0, -(-(self._num_positions - self._first) // self._global_batch_size))

    def __iter__(self) -> Iterator[Batch]:
        firsts = range(self._first, self._num_positions, self._global_batch_size)
        batches = ReadAhead(self._read_padded, firsts, self._num_threads)
        try:
            yield from batches
        finally:
            batches.close()

    def _read_padded(self, first: int) -> Batch:
        positions_B = host_positions(first, self._batch_size, *self._process)
        positions_B = positions_B[positions_B < self._num_positions]
        epochs_B, places_B = np.divmod(positions_B, self._num_chosen)
        batch = self._read(epochs_B, places_B * self._num_examples // self._num_chosen)
        missing = self._batch_size - len(positions_B)
        return {name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for name, array in batch.items()}


def check_share(batch_size: int, process_index: int, process_count: int) -> None:
    """Raises ValueError unless the arguments describe a process's share of a batch."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: expected an integer >= 1, got {batch_size!r}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index: expected 0 <= process_index < process_count = {process_count}, "
                         f"got {process_index}")

