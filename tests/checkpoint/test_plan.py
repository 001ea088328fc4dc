"""Chunk shapes and owners, decided alike by every process."""
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqim.checkpoint import plan
from vqim.checkpoint.plan import Held, chunk_shape, make_plan


def even_boxes(shape, parts):
    """The boxes of an array cut into ceil-sized parts along each dimension, as XLA cuts it."""
    ranges = []
    for size, count in zip(shape, parts, strict=True):
        length = -(-size // count)
        ranges.append([(start, min(start + length, size)) for start in range(0, size, length)])
    return list(itertools.product(*ranges))


@pytest.mark.parametrize(("shape", "parts", "expected"), [
    ((8, 6), (1, 1), (8, 6)),
    ((8, 6), (4, 1), (2, 6)),
    ((8, 6), (2, 3), (4, 2)),
    ((10,), (4,), (3,)),  # 3, 3, 3 and a last one of 1
    ((), (), ()),
])
def test_a_chunk_is_one_even_shard(shape, parts, expected):
    assert chunk_shape(shape, even_boxes(shape, parts), itemsize=4) == expected


def test_chunks_divide_shards_of_different_lengths():
    assert chunk_shape((20,), [((0, 8),), ((8, 12),), ((12, 20),)], itemsize=4) == (4,)


def test_a_large_stack_is_cut_along_layers_first():
    assert chunk_shape((12, 1024, 4096), [((0, 12), (0, 1024), (0, 4096))], itemsize=4) == (1, 1024, 4096)


def test_a_large_shard_is_cut_into_equal_chunks():
    # 4 shards of 3000 rows, 11.4 MiB each 1000 rows: 1464 rows would fit 16 MiB, 1000 is the largest that divides 3000.
    assert chunk_shape((12000, 3000), even_boxes((12000, 3000), (4, 1)), itemsize=4) == (1000, 3000)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5)), min_size=1, max_size=3), st.integers(1, 64))
def test_no_chunk_holds_elements_of_two_shards(dimensions, limit):
    shape, parts = zip(*dimensions, strict=True)
    boxes = even_boxes(shape, parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "CHUNK_BYTES", limit)
        chunks = chunk_shape(shape, boxes, itemsize=1)
    for box in boxes:
        for (start, stop), size, chunk in zip(box, shape, chunks, strict=True):
            assert start % chunk == 0
            assert stop % chunk == 0 or stop == size
    assert math.prod(chunks) <= limit


def held(shape, *boxes, dtype="float32"):
    return Held(shape, dtype, 4, boxes)


def test_replicated_arrays_are_shared_out_evenly_among_the_processes_that_hold_them():
    everything = {f"a{i}": held((6,), ((0, 6),)) for i in range(6)}
    owners = [owner for array in make_plan([everything] * 3).values() for owner in array.owners.values()]
    assert sorted(owners) == [0, 0, 1, 1, 2, 2]


def test_a_box_is_owned_by_a_process_that_holds_it():
    tables = [{"a": held((4,), ((0, 2),))}, {"a": held((4,), ((2, 4),), ((0, 2),))}]
    assert make_plan(tables)["a"].owners == {((0, 2),): 0, ((2, 4),): 1}


@pytest.mark.parametrize(("tables", "message"), [
    ([{"a": held((4,), ((0, 2),))}], r"a: elements \[2:4\] of \[4\] are in 0 different shards"),
    ([{"a": held((4,), ((0, 3),))}, {"a": held((4,), ((2, 4),))}], r"a: elements \[2:3\] of \[4\] are in 2"),
    ([{"a": held((4,), ((0, 4),))}, {"a": held((5,))}], r"float32\[4\] in process 0 and float32\[5\] in process 1"),
    ([{"a": held((4,), ((0, 4),))}, {"a": held((4,), dtype="int8")}], r"float32\[4\] in process 0 and int8\[4\]"),
    ([{"a": held((4,), ((0, 4),))}, {"b": held((4,))}], r"process 1 and process 0 save different arrays.*'a', 'b'"),
    ([{"a": held((), )}], r"a: elements \[\] of \[\] are in 0"),
])
def test_what_cannot_be_put_together_is_refused(tables, message):
    with pytest.raises(ValueError, match=message):
        make_plan(tables)
