"""Decides which process writes what: from the shards that every process holds to chunk shapes and owners.

Every process computes the same plan from the same tables, so no plan has to be sent.
"""
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vqim.checkpoint.layout import ArraySpec

# A reader that needs a slice reads whole chunks, so they should be small. But each chunk is an entry in the index and,
# in a bucket, a separate request.
CHUNK_BYTES = 16 << 20

Box = tuple[tuple[int, int], ...]  # (start, stop) along each dimension


class Held(NamedTuple):
    """The part of an array that one process holds."""

    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    boxes: tuple[Box, ...]


class ArrayPlan(NamedTuple):
    """How all processes together write an array: the owner of each box is the process that writes it."""

    spec: ArraySpec
    num_bytes: int
    owners: dict[Box, int]


def make_plan(tables: Sequence[Mapping[str, Held]]) -> dict[str, ArrayPlan]:
    """Decides chunks and owners.

    If several processes hold a box, the one with the least to write so far writes it.

    Args:
      tables: for each process, every array's name and the part that the process holds.

    Raises:
      ValueError: processes disagree about names, shapes or dtypes, shards overlap, or some element is in no shard.
    """
    names = sorted(tables[0])
    for process, table in enumerate(tables):
        if sorted(table) != names:
            differing = sorted(set(table) ^ set(names))
            raise ValueError(f"process {process} and process 0 save different arrays: only one has {differing[:5]}")
    load = [0] * len(tables)
    return {name: _plan_array(name, [table[name] for table in tables], load) for name in names}


def _plan_array(name: str, held: Sequence[Held], load: list[int]) -> ArrayPlan:
    """Plans one array and adds to `load`, the bytes that each process writes."""
    shape, dtype, itemsize, _ = held[0]
    holders: dict[Box, list[int]] = {}
    for process, here in enumerate(held):
        if (here.shape, here.dtype) != (shape, dtype):
            raise ValueError(f"{name} is {dtype}{list(shape)} in process 0 and "
                             f"{here.dtype}{list(here.shape)} in process {process}")
        for box in here.boxes:
            processes = holders.setdefault(box, [])
            if process not in processes:
                processes.append(process)
    num_bytes = math.prod(shape) * itemsize
    if num_bytes == 0:  # no chunk, but some process must write its shape
        return ArrayPlan(ArraySpec(shape, dtype, tuple(max(1, size) for size in shape)), 0,
                         {tuple((0, size) for size in shape): 0})
    _check_partition(name, shape, list(holders))
    owners = {}
    for box, processes in sorted(holders.items()):
        owner = min(processes, key=lambda process: (load[process], process))
        load[owner] += math.prod(stop - start for start, stop in box) * itemsize
        owners[box] = owner
    return ArrayPlan(ArraySpec(shape, dtype, chunk_shape(shape, list(owners), itemsize)), num_bytes, owners)


def _check_partition(name: str, shape: tuple[int, ...], boxes: Sequence[Box]) -> None:
    """Checks that every element is in exactly one box, on the coarsest grid that has all their boundaries."""
    cuts = [sorted({0, size, *(edge for box in boxes for edge in box[axis])}) for axis, size in enumerate(shape)]
    count = np.zeros([len(c) - 1 for c in cuts], np.int64)
    for box in boxes:
        count[tuple(slice(c.index(start), c.index(stop)) for c, (start, stop) in zip(cuts, box, strict=True))] += 1
    if (count != 1).any():
        cell = np.argwhere(count != 1)[0]
        where = [f"{c[i]}:{c[i + 1]}" for c, i in zip(cuts, cell, strict=True)]
        raise ValueError(f"{name}: elements [{', '.join(where)}] of {list(shape)} are in {count[tuple(cell)]} "
                         "different shards over all processes, expected exactly one")


def chunk_shape(shape: tuple[int, ...], boxes: Sequence[Box], itemsize: int) -> tuple[int, ...]:
    """A chunk shape such that every box is made of whole chunks, each of about `CHUNK_BYTES` at most.

    Along a dimension that is cut, it takes the largest length of which all cuts are multiples: for even shards, the
    shard's own length. Chunks that are too large are then split, the first dimension first, so that they stay
    contiguous.
    """
    chunk, is_cut = [], []
    for axis, size in enumerate(shape):
        cuts = {edge for box in boxes for edge in box[axis]} - {0, size}
        is_cut.append(bool(cuts))
        chunk.append(math.gcd(*cuts) if cuts else max(1, size))
    for axis in range(len(shape)):
        num_bytes = math.prod(chunk) * itemsize
        if num_bytes <= CHUNK_BYTES:
            break
        length = max(1, chunk[axis] * CHUNK_BYTES // num_bytes)
        if is_cut[axis]:
            length = next(divisor for divisor in range(length, 0, -1) if chunk[axis] % divisor == 0)
        chunk[axis] = length
    return tuple(chunk)
