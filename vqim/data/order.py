"""Which example is read when, and random numbers for its augmentation: functions of the seed and a position.

Training reads one endless stream: the data set in a new order in every epoch. Position p in the stream is example
p % N in the order of epoch p // N. Process h of H takes part h of every batch of H * B positions. So processes never
share a position, together cover the stream, and see the same global batches for any H.

The order uses only raw bits from NumPy's Philox, which NumPy keeps the same in all versions.

    B batch per process, N examples
"""
import functools
import hashlib

import numpy as np


def host_positions(first: int, batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    """This process's part, int64 [B], of the global batch that begins at stream position `first`."""
    return first + process_index * batch_size + np.arange(batch_size, dtype=np.int64)


def shuffled(positions_B: np.ndarray, num_examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The examples at some positions of the training stream.

    Returns:
      (epochs_B, records_B), int64: the epoch of each position, and the index of its example in the source.
    """
    epochs_B, offsets_B = np.divmod(positions_B, num_examples)
    records_B = np.empty_like(offsets_B)
    for epoch in np.unique(epochs_B):
        here = epochs_B == epoch
        records_B[here] = epoch_order(num_examples, seed, int(epoch))[offsets_B[here]]
    return epochs_B, records_B


@functools.lru_cache(maxsize=4)
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch: a permutation of 0 .. num_examples - 1, int64, read-only."""
    bits = np.random.Philox(key=stream_key(seed, "order"), counter=[0, 0, 0, epoch]).random_raw(num_examples)
    order = np.argsort(bits, kind="stable")
    order.setflags(write=False)
    return order


def augmentation_rng(key: int, epoch: int, record: int) -> np.random.Generator:
    """The random generator for one example in one epoch; `key` is `stream_key(seed, "augmentation")`."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, epoch, record]))


def stream_key(seed: int, purpose: str) -> int:
    """A 128-bit Philox key, hashed so that neighbouring seeds share nothing."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{purpose}".encode()).digest()[:16], "little")
