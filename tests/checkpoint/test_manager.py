"""Saving and reading by one process."""
import errno
import json
import logging
import math
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.checkpoint.one_process import WEIGHT, cut_off, flip_a_bit, largest_file, save
from vqim.checkpoint import plan, store
from vqim.checkpoint.errors import CheckpointError, NoCheckpointError
from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.policy import KeepBest, KeepEvery, KeepLatest
from vqim.checkpoint.store import DTYPES, HostArray, numpy_dtype


@st.composite
def arrays_of_any_bits(draw):
    dtype = numpy_dtype(draw(st.sampled_from(sorted(DTYPES))))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    size = math.prod(shape) * dtype.itemsize
    bits = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
    return (bits & 1 if dtype.name == "bool" else bits).view(dtype).reshape(shape)


@settings(max_examples=30, deadline=None)
@given(st.lists(arrays_of_any_bits(), min_size=1, max_size=8))
def test_every_bit_of_every_dtype_and_shape_comes_back(tmp_path_factory, values):
    manager = CheckpointManager(tmp_path_factory.mktemp("bits"))
    save(manager, 0, {f"a/{i}": array for i, array in enumerate(values)})
    checkpoint = manager.open()
    for i, array in enumerate(values):
        read = checkpoint.read(f"a/{i}")
        assert (read.dtype, read.shape) == (array.dtype, array.shape) == checkpoint.spec(f"a/{i}")[::-1]
        assert read.tobytes() == array.tobytes()


def test_nan_payloads_and_negative_zeros_survive(tmp_path):
    bits = np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000], np.uint32)
    half = np.array([0x7FC1, 0xFF81, 0x8000], np.uint16)
    manager = CheckpointManager(tmp_path)
    save(manager, 0, {"a": bits.view(np.float32), "b": half.view(ml_dtypes.bfloat16)})
    np.testing.assert_array_equal(manager.open().read("a").view(np.uint32), bits)
    np.testing.assert_array_equal(manager.open().read("b").view(np.uint16), half)


@pytest.mark.parametrize("index", [
    (slice(1, 3), slice(2, 5)), (slice(None), slice(-1, None)), (slice(3, 1), slice(None)), (slice(0, 99), slice(5, 6)),
])
def test_a_slice_is_numpys_slice(tmp_path, index):
    manager = CheckpointManager(tmp_path)
    save(manager, 0, {"a": WEIGHT})
    np.testing.assert_array_equal(manager.open().read("a", index), WEIGHT[index])


def test_an_array_of_many_chunks_and_little_memory_in_flight_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "CHUNK_BYTES", 64)
    monkeypatch.setattr(store, "_IN_FLIGHT_BYTES", 100)
    values = {f"a{i}": np.random.default_rng(i).standard_normal((7, 5, 3)) for i in range(5)}
    manager = CheckpointManager(tmp_path)
    save(manager, 0, values)
    checkpoint = manager.open()
    assert checkpoint.metadata["arrays"]["a0"]["chunks"] == [1, 2, 3]
    for name, array in values.items():
        np.testing.assert_array_equal(checkpoint.read(name), array)


def test_a_checkpoint_says_what_it_is(tmp_path):
    manager = CheckpointManager(tmp_path)
    save(manager, 12, {"params/a": WEIGHT, "optimizer/a": np.zeros(3, np.int8)})
    checkpoint = manager.open()
    assert (checkpoint.step, checkpoint.config, checkpoint.data_position(0)) == (12, "train.steps = 12", {"epoch": 12})
    assert checkpoint.metadata == {
        "schema_version": 2, "step": 12, "process_count": 1, "seed": 7,
        "arrays": {"params/a": {"shape": [4, 6], "dtype": "float32", "chunks": [4, 6]},
                   "optimizer/a": {"shape": [3], "dtype": "int8", "chunks": [3]}}}


def test_names_are_filtered_by_a_regular_expression(tmp_path):
    manager = CheckpointManager(tmp_path)
    save(manager, 0, dict.fromkeys(("params/encoder/a", "params/decoder/a", "optimizer/encoder/a"), WEIGHT))
    checkpoint = manager.open()
    assert checkpoint.names() == ["optimizer/encoder/a", "params/decoder/a", "params/encoder/a"]
    assert checkpoint.names("^params/encoder/") == ["params/encoder/a"]
    assert checkpoint.names("encoder") == ["optimizer/encoder/a", "params/encoder/a"]


def test_any_step_can_be_opened_and_the_newest_is_the_default(tmp_path):
    manager = CheckpointManager(tmp_path)
    for step in (5, 100_000_000, 20):
        save(manager, step)
    assert (manager.steps(), manager.latest_step()) == ([5, 20, 100_000_000], 100_000_000)
    assert (manager.open().step, manager.open(5).step) == (100_000_000, 5)
    np.testing.assert_array_equal(manager.open(5).read("params/net/weight"), WEIGHT + 5)


def test_a_moved_directory_reads_the_same(tmp_path):
    save(CheckpointManager(tmp_path / "here"), 3)
    shutil.move(tmp_path / "here", tmp_path / "there")
    checkpoint = CheckpointManager(tmp_path / "there").open()
    np.testing.assert_array_equal(checkpoint.read("params/net/weight"), WEIGHT + 3)


def test_a_single_step_copied_elsewhere_reads_the_same(tmp_path):
    save(CheckpointManager(tmp_path / "here"), 3)
    shutil.copytree(tmp_path / "here" / "00000003", tmp_path / "there" / "00000003")
    shutil.rmtree(tmp_path / "here")
    checkpoint = CheckpointManager(tmp_path / "there").open()
    np.testing.assert_array_equal(checkpoint.read("params/net/weight"), WEIGHT + 3)


def test_save_returns_before_anything_is_written(tmp_path):
    gate = threading.Event()
    manager = CheckpointManager(tmp_path / "checkpoints", barrier=lambda name: gate.wait(60) or None)
    manager.save(1, {"a": HostArray.whole(WEIGHT)}, {}, config="", data_position={})
    assert manager.latest_step() is None
    gate.set()
    manager.wait()
    assert manager.latest_step() == 1


def test_a_program_that_ends_during_a_save_finishes_it(tmp_path):
    program = """if True:
        import sys, time, numpy
        from vqim.checkpoint.manager import CheckpointManager
        from vqim.checkpoint.store import HostArray
        manager = CheckpointManager(sys.argv[1], barrier=lambda name: time.sleep(0.05))
        manager.save(1, {"a": HostArray.whole(numpy.ones(3))}, {}, config="", data_position={})
        assert manager.latest_step() is None
    """
    repository = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60,
                   env={**os.environ, "PYTHONPATH": str(repository)})
    np.testing.assert_array_equal(CheckpointManager(tmp_path).open().read("a"), np.ones(3))


def test_what_the_caller_changes_after_save_is_not_what_is_saved(tmp_path):
    gate = threading.Event()
    manager = CheckpointManager(tmp_path, barrier=lambda name: gate.wait(60) or None)
    arrays, metadata, position = {"a": HostArray.whole(WEIGHT)}, {"mesh": [1, 2]}, {"epoch": 1}
    manager.save(1, arrays, metadata, config="", data_position=position)
    arrays.clear(), metadata["mesh"].append(3), position.update(epoch=2)
    gate.set()
    manager.wait()
    checkpoint = manager.open()
    assert checkpoint.names() == ["a"]
    assert (checkpoint.metadata["mesh"], checkpoint.data_position()) == ([1, 2], {"epoch": 1})


def test_a_step_that_exists_is_not_saved_again(tmp_path, caplog):
    manager = CheckpointManager(tmp_path)
    save(manager, 1, {"a": WEIGHT})
    with caplog.at_level(logging.INFO, "absl"):
        save(manager, 1, {"a": WEIGHT * 2})
    np.testing.assert_array_equal(manager.open().read("a"), WEIGHT)
    assert "00000001 exists already and is not saved again" in caplog.text


def test_policies_are_applied_after_each_save(tmp_path):
    manager = CheckpointManager(tmp_path, keep=[KeepLatest(2), KeepEvery(4), KeepBest("loss", 1, "min")])
    for step, loss in enumerate([5.0, 1.0, math.nan, 2.0, 3.0, 4.0, -math.inf]):
        save(manager, step, loss=loss)
    assert manager.steps() == [0, 1, 4, 5, 6]
    assert sorted(os.listdir(tmp_path)) == [f"{step:08d}" for step in manager.steps()]


def test_retention_by_metric_goes_on_after_a_restart(tmp_path):
    save(CheckpointManager(tmp_path), 1, loss=1.0)
    save(CheckpointManager(tmp_path), 2, loss=2.0)
    manager = CheckpointManager(tmp_path, keep=[KeepBest("loss", 1, "min")])
    save(manager, 3, loss=3.0)
    assert manager.steps() == [1, 3]


def break_writing(monkeypatch, error):
    def fail(*args):
        raise error
    monkeypatch.setattr(store, "write_arrays", fail)


def test_a_failed_save_surfaces_at_the_next_save_and_removes_nothing_old(tmp_path, monkeypatch):
    manager = CheckpointManager(tmp_path, keep=[KeepLatest(1)])
    save(manager, 1)
    with monkeypatch.context() as patch:
        break_writing(patch, OSError(errno.ENOSPC, "No space left on device"))
        manager.save(2, {"a": HostArray.whole(WEIGHT)}, {}, config="", data_position={})
        with pytest.raises(CheckpointError, match=r"00000002 was not saved: .*No space left on device; checkpoint "
                                                  r".*00000001 is whole.*Arrays of 0\.0 MiB.*MiB are free now"):
            manager.save(3, {"a": HostArray.whole(WEIGHT)}, {}, config="", data_position={})
    assert os.listdir(tmp_path) == ["00000001"]
    save(manager, 3)
    assert manager.steps() == [3]


def test_a_failed_first_save_says_that_there_is_no_earlier_checkpoint(tmp_path, monkeypatch):
    break_writing(monkeypatch, PermissionError(errno.EACCES, "Permission denied"))
    manager = CheckpointManager(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="Permission denied; there is no earlier checkpoint$"):
        save(manager, 1)


def test_an_error_is_raised_once(tmp_path, monkeypatch):
    break_writing(monkeypatch, OSError("broken"))
    manager = CheckpointManager(tmp_path)
    with pytest.raises(CheckpointError, match="broken"):
        save(manager, 1)
    manager.wait()


def test_a_directory_that_cannot_be_made_is_an_error_and_not_a_silent_thread(tmp_path):
    (tmp_path / "file").write_text("")
    manager = CheckpointManager(tmp_path / "file" / "checkpoints")
    with pytest.raises(CheckpointError, match="was not saved"):
        save(manager, 1)


def test_a_stray_temporary_is_ignored_and_left_alone_by_readers(tmp_path):
    save(CheckpointManager(tmp_path), 1)
    shutil.copytree(tmp_path / "00000001", tmp_path / "00000002.tmp")
    reader = CheckpointManager(tmp_path)
    assert (reader.steps(), reader.open().step) == ([1], 1)
    assert (tmp_path / "00000002.tmp").exists()


def test_the_first_save_removes_leftovers_and_nothing_else(tmp_path):
    for name in ("00000002.tmp", "20250101", "notes", "0000004", "best.tmp"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x").write_text("")
    save(CheckpointManager(tmp_path), 5)
    assert set(os.listdir(tmp_path)) == {"20250101", "0000004", "00000005", "best.tmp", "notes"}


def test_a_missing_checkpoint_says_what_was_found(tmp_path):
    assert CheckpointManager(tmp_path / "nowhere").latest_step() is None
    with pytest.raises(NoCheckpointError, match="nowhere has no committed checkpoint; it is empty or does not exist"):
        CheckpointManager(tmp_path / "nowhere").open()
    save(CheckpointManager(tmp_path / "run" / "checkpoints"), 1)
    with pytest.raises(NoCheckpointError, match="it holds checkpoints .a step is a directory like 00001000"):
        CheckpointManager(tmp_path / "run").open()
    with pytest.raises(NoCheckpointError, match=r"no committed step 2; it has \[1\]"):
        CheckpointManager(tmp_path / "run" / "checkpoints").open(2)


def test_a_missing_name_is_refused_with_the_closest(tmp_path):
    manager = CheckpointManager(tmp_path)
    save(manager, 1)
    with pytest.raises(ValueError, match=r"00000001 has no array 'params/net/wieght'; close to it: \['params/net/weig"):
        manager.open().read("params/net/wieght")


def test_check_lists_every_array_that_does_not_fit(tmp_path):
    manager = CheckpointManager(tmp_path)
    save(manager, 1, {"a": WEIGHT, "b": np.zeros(3, np.int8), "c": WEIGHT, "extra": WEIGHT})
    checkpoint = manager.open()
    float32 = np.dtype(np.float32)
    checkpoint.check({"a": ((4, 6), float32), "c": ((4, 6), float32)})
    with pytest.raises(ValueError) as raised:
        checkpoint.check({"a": ((4, 7), float32), "b": ((3,), float32), "c": ((4, 6), float32), "d": ((), float32)})
    assert str(raised.value).splitlines()[1:] == [
        "  a: expected float32[4, 7], the checkpoint has float32[4, 6]",
        "  b: expected float32[3], the checkpoint has int8[3]",
        "  d: expected float32[], not in the checkpoint"]
    assert "(3 of 4 arrays)" in str(raised.value)


def test_a_newer_schema_is_refused(tmp_path):
    manager = CheckpointManager(tmp_path)
    save(manager, 1)
    path = tmp_path / "00000001" / "commit.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 3}))
    with pytest.raises(CheckpointError, match="has schema version 3, this program reads up to 2: update vqim"):
        manager.open()


@pytest.mark.parametrize("name", ["metadata.json", "config.gin"])
def test_a_missing_file_is_a_damaged_checkpoint(tmp_path, name):
    manager = CheckpointManager(tmp_path)
    save(manager, 1)
    os.remove(tmp_path / "00000001" / name)
    with pytest.raises(CheckpointError, match=f"{name} is missing: the checkpoint is damaged, open an earlier step"):
        manager.open()


def test_metadata_cut_off_are_a_damaged_checkpoint(tmp_path):
    manager = CheckpointManager(tmp_path)
    save(manager, 1)
    path = tmp_path / "00000001" / "metadata.json"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="metadata.json is damaged"):
        manager.open()


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, os.remove])
def test_damaged_arrays_are_an_error_and_never_wrong_numbers(tmp_path, damage):
    manager = CheckpointManager(tmp_path)
    save(manager, 1, {"a": np.random.default_rng(0).standard_normal(10_000)})
    damage(largest_file(tmp_path))
    with pytest.raises(CheckpointError, match="00000001 is damaged, a cannot be read: .*open an earlier step; "
                                              "--restore=latest_valid"):
        manager.open().read("a")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"step": -1}, "step must be an integer of at least 0, got -1"),
    ({"arrays": {"/a": HostArray.whole(WEIGHT)}}, "arrays must have names like 'params/encoder/bias', got '/a'"),
    ({"metadata": {"step": 3}}, r"metadata must not have the keys \['step'\]"),
    ({"metadata": {"loss": math.nan}}, "metadata must be JSON"),
    ({"data_position": {"generator": np.int64(3)}}, "data_position must be JSON"),
])
def test_what_cannot_be_saved_is_refused_at_once(tmp_path, arguments, message):
    manager = CheckpointManager(tmp_path)
    usual = {"step": 1, "arrays": {"a": HostArray.whole(WEIGHT)}, "metadata": {}, "config": "", "data_position": {}}
    with pytest.raises(ValueError, match=message):
        manager.save(**{**usual, **arguments})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("build", "message"), [
    (lambda: HostArray((4,), np.dtype("U3"), []), "dtype must be one of"),
    (lambda: HostArray((4,), np.dtype("f4"), [((slice(0, 2),), np.zeros(3, "f4"))]), r"must be float32\[2\], got"),
    (lambda: HostArray((4,), np.dtype("f4"), [((slice(0, 2),), np.zeros(2, "i1"))]), r"got int8\[2\]"),
    (lambda: HostArray((4,), np.dtype("f4"), [((slice(0, 4, 2),), np.zeros(2, "f4"))]), "1 slices of step 1"),
    (lambda: HostArray((4,), np.dtype("f4"), [((), np.zeros(4, "f4"))]), "1 slices of step 1"),
])
def test_a_shard_that_does_not_fit_its_array_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"process_index": 2, "process_count": 2}, r"process_index must be in \[0, 2\), got 2"),
    ({"process_count": 2}, "barrier must be given for 2 processes"),
    ({"directory": "memory://x/", "by_rename": True}, "by_rename must be False"),
])
def test_a_bad_argument_of_the_manager_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        CheckpointManager(**{"directory": tmp_path, **arguments})
