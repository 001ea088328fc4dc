"""The commit-file protocol, as object stores need it: on a disk, in tensorstore's store in memory, and in S3."""
import itertools
import threading

import numpy as np
import pytest

from vqim.checkpoint import layout
from vqim.checkpoint.commit import Commit
from vqim.checkpoint.errors import CheckpointError
from vqim.checkpoint.files import BucketFiles, LocalFiles, open_files
from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.policy import KeepLatest
from vqim.checkpoint.store import HostArray

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)
_numbers = itertools.count()


@pytest.fixture(params=["disk", "memory", "s3"])
def directory(request, tmp_path):
    """A place whose steps are committed by a file; every test gets an empty one."""
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/run/checkpoints"
    return str(tmp_path) if request.param == "disk" else f"memory://test{next(_numbers)}/checkpoints"


def save(directory, step, keep=()):
    manager = CheckpointManager(directory, by_rename=False, keep=keep)
    manager.save(step, {"a": HostArray.whole(VALUES + step)}, {}, config="x = 1", data_position={"step": step})
    manager.wait()
    return manager


def test_what_is_saved_reads_back(directory):
    checkpoint = save(directory, 7).open()
    np.testing.assert_array_equal(checkpoint.read("a"), VALUES + 7)
    assert (checkpoint.config, checkpoint.data_position(), checkpoint.metadata["step"]) == ("x = 1", {"step": 7}, 7)


def test_two_processes_merge(directory):
    meeting = threading.Barrier(2)
    group = [CheckpointManager(directory, by_rename=False, process_index=i, process_count=2,
                               barrier=lambda name: meeting.wait(60) and None) for i in (0, 1)]
    for manager, rows in zip(group, (slice(0, 2), slice(2, 3)), strict=True):
        mine = HostArray(VALUES.shape, VALUES.dtype, [((rows, slice(0, 4)), VALUES[rows])])
        manager.save(1, {"a": mine}, {}, config="", data_position={})
    for manager in group:
        manager.wait()
    np.testing.assert_array_equal(group[1].open().read("a"), VALUES)


def test_a_step_without_its_commit_file_does_not_exist_and_the_next_start_removes_it(directory):
    save(directory, 1)
    save(directory, 2)
    files = open_files(directory)
    files.remove(f"{layout.step_name(2)}/{layout.COMMIT_FILE}")
    assert CheckpointManager(directory, by_rename=False).steps() == [1]
    assert files.children() == ["00000001", "00000002"]
    assert save(directory, 3).steps() == [1, 3]
    assert files.children() == ["00000001", "00000003"]


def test_the_commit_file_is_the_last_to_be_written_and_the_first_to_be_removed(directory, monkeypatch):
    events = []
    kind = type(open_files(directory))
    for method in ("write", "remove"):
        original = getattr(kind, method)

        def record(self, path, *rest, original=original, method=method):
            events.append((method, path))
            return original(self, path, *rest)

        monkeypatch.setattr(kind, method, record)
    save(directory, 1)
    assert events[-1] == ("write", "00000001/commit.json")
    save(directory, 2, keep=[KeepLatest(1)])
    assert events[-3:] == [("write", "00000002/commit.json"), ("remove", "00000001/commit.json"),
                           ("remove", "00000001")]


def test_old_steps_are_removed_whole(directory):
    for step in range(4):
        manager = save(directory, step, keep=[KeepLatest(2)])
    assert manager.steps() == [2, 3]
    assert open_files(directory).children() == ["00000002", "00000003"]


def test_a_failed_save_leaves_nothing_behind(directory, monkeypatch):
    save(directory, 1)

    def fail(self, step, commit):
        raise OSError("bucket unreachable")

    with monkeypatch.context() as patch:
        patch.setattr(Commit, "publish", fail)
        with pytest.raises(CheckpointError, match="00000002 was not saved: bucket unreachable; .*00000001 is whole"):
            save(directory, 2)
    assert open_files(directory).children() == ["00000001"]


def test_removing_a_step_in_a_bucket_spares_steps_with_longer_names():
    files = BucketFiles("memory://longer/checkpoints")
    for name in ("00000001", "000000010", "00000001.tmp"):
        files.write(f"{name}/x", b"")
    files.remove("00000001")
    assert files.children() == ["00000001.tmp", "000000010"]


def test_a_url_is_a_bucket_and_a_path_is_a_disk(tmp_path):
    assert isinstance(open_files("gs://bucket/run/checkpoints"), BucketFiles)
    assert open_files("gs://bucket/run/checkpoints/").kvstore("00000001/state") == {
        "driver": "gcs", "bucket": "bucket", "path": "run/checkpoints/00000001/state/"}
    assert isinstance(open_files(tmp_path), LocalFiles)
    assert isinstance(open_files("runs/gs"), LocalFiles)


@pytest.mark.parametrize(("name", "step"), [
    ("00000012", 12), ("123456789", 123456789), ("00000012.tmp", None), ("0000012", None), ("012345678", None),
    ("00000012 ", None), ("step", None), ("-0000012", None),
])
def test_only_a_padded_number_names_a_step(name, step):
    assert layout.parse_step(name) == step
    assert layout.parse_temporary(f"{name}.tmp") == step
    assert layout.parse_temporary("00000012") is None
