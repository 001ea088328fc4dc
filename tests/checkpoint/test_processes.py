"""Several processes that save one checkpoint together; here each is a manager with a saving thread of its own."""
import errno
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqim.checkpoint import store
from vqim.checkpoint.errors import CheckpointError
from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.policy import KeepLatest
from vqim.checkpoint.store import HostArray


def managers(directory, count, **options):
    meeting = threading.Barrier(count)
    return [CheckpointManager(directory, process_index=i, process_count=count,
                              barrier=lambda name: meeting.wait(60) and None, **options) for i in range(count)]


def shards(values, boxes):
    """The HostArray of a process that holds these (start, stop) boxes of an array."""
    indices = [tuple(slice(start, stop) for start, stop in box) for box in boxes]
    return HostArray(values.shape, values.dtype, [(index, values[index]) for index in indices])


def save(group, step, arrays_of_each):
    """All managers save; returns what each then raised, or None."""
    for process, (manager, arrays) in enumerate(zip(group, arrays_of_each, strict=True)):
        manager.save(step, arrays, {}, config="", data_position={"process": process, "step": step})
    errors = []
    for manager in group:
        try:
            manager.wait()
            errors.append(None)
        except CheckpointError as error:
            errors.append(str(error))
    return errors


VALUES = np.arange(60, dtype=np.int8).reshape(6, 10)
LEFT, RIGHT = [((0, 6), (0, 5))], [((0, 6), (5, 10))]
HALVES = [{"a": shards(VALUES, LEFT)}, {"a": shards(VALUES, RIGHT)}]


def test_two_processes_save_and_one_reads_across_their_boundary(tmp_path):
    group = managers(tmp_path, 2)
    assert save(group, 1, HALVES) == [None, None]
    checkpoint = CheckpointManager(tmp_path).open()
    np.testing.assert_array_equal(checkpoint.read("a"), VALUES)
    np.testing.assert_array_equal(checkpoint.read("a", (slice(2, 4), slice(3, 8))), VALUES[2:4, 3:8])
    assert checkpoint.read("a").dtype == np.int8
    assert checkpoint.metadata["process_count"] == 2


def test_one_process_saves_and_two_read_their_halves(tmp_path):
    manager = CheckpointManager(tmp_path)
    manager.save(1, {"a": HostArray.whole(VALUES)}, {}, config="", data_position={})
    manager.wait()
    halves = [reader.open().read("a", (slice(None), part)) for reader, part in
              zip(managers(tmp_path, 2), (slice(0, 5), slice(5, 10)), strict=True)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), VALUES)


def test_each_process_finds_its_own_data_position(tmp_path):
    save(managers(tmp_path, 2), 3, HALVES)
    checkpoint = CheckpointManager(tmp_path).open()
    assert [checkpoint.data_position(i) for i in (0, 1)] == [{"process": 0, "step": 3}, {"process": 1, "step": 3}]
    with pytest.raises(ValueError, match=r"process_index must be in \[0, 2\): that many processes saved step 3, got 2"):
        checkpoint.data_position(2)


@st.composite
def meshes(draw):
    """A shape, a number of parts along each dimension, and for each part the processes that hold it."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple))
    boxes = [()]
    for size in shape:
        length = -(-size // draw(st.integers(1, 4)))
        cuts = [(start, min(start + length, size)) for start in range(0, size, length)]
        boxes = [(*box, cut) for box in boxes for cut in cuts]
    holders = [draw(st.sets(st.integers(0, 2), min_size=1)) for _ in boxes]
    return shape, boxes, holders, tuple(sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape)


@settings(max_examples=25, deadline=None)
@given(meshes())
def test_any_mesh_with_any_replication_reads_as_one_array(tmp_path_factory, mesh):
    shape, boxes, holders, part = mesh
    values = np.random.default_rng(0).integers(0, 2**32, shape, np.uint32).view(np.float32)
    arrays = [{"a": shards(values, [box for box, who in zip(boxes, holders, strict=True) if process in who])}
              for process in range(3)]
    directory = tmp_path_factory.mktemp("mesh")
    assert save(managers(directory, 3), 1, arrays) == [None, None, None]
    index = tuple(slice(start, stop) for start, stop in part)
    checkpoint = CheckpointManager(directory).open()
    assert checkpoint.read("a").tobytes() == values.tobytes()
    assert checkpoint.read("a", index).tobytes() == values[index].tobytes()


def test_what_two_processes_hold_is_written_by_one(tmp_path):
    values = np.random.default_rng(0).standard_normal(100_000)
    group = managers(tmp_path, 2)
    save(group, 1, [{"a": HostArray.whole(values)}] * 2)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert values.nbytes < written < 1.1 * values.nbytes


def test_a_dimension_of_no_length_needs_no_shard(tmp_path):
    empty = np.zeros((0, 3), np.float32)
    assert save(managers(tmp_path, 2), 1, [{"a": shards(empty, [])}] * 2) == [None, None]
    assert CheckpointManager(tmp_path).open().read("a").shape == (0, 3)


@pytest.mark.parametrize("broken", [0, 1])
def test_if_one_process_fails_no_process_commits(tmp_path, monkeypatch, broken):
    group = managers(tmp_path, 2, keep=[KeepLatest(1)])
    save(group, 1, HALVES)
    write = store.write_arrays

    def fail_in_one(files, directory, process_index, arrays, plan):
        if process_index == broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(files, directory, process_index, arrays, plan)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_arrays", fail_in_one)
        errors = save(group, 2, HALVES)
    assert "No space left on device" in errors[broken]
    assert "their own messages say why" in errors[1 - broken] or "see the error in its log" in errors[1 - broken]
    assert all("00000001 is whole" in error for error in errors)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    assert save(group, 3, HALVES) == [None, None]
    assert [manager.latest_step() for manager in group] == [3, 3]


def test_an_element_that_nobody_holds_stops_the_save(tmp_path):
    errors = save(managers(tmp_path, 2), 1, [HALVES[0], HALVES[0]])
    assert all("a: elements [0:6, 5:10] of [6, 10] are in 0 different shards" in error for error in errors)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_save_different_arrays_are_told(tmp_path):
    errors = save(managers(tmp_path, 2), 1, [HALVES[0], {"b": HALVES[1]["a"]}])
    assert all("save different arrays: only one has ['a', 'b']" in error for error in errors)
