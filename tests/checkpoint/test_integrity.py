"""What is damaged, half written, being read or being written by another program."""
import math
import os
import re
import threading

import numpy as np
import pytest

from tests.checkpoint.one_process import WEIGHT, flip_a_bit, largest_file, save
from vqim.checkpoint.errors import CheckpointError
from vqim.checkpoint.files import LocalFiles
from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.policy import KeepBest, KeepLatest, Saved
from vqim.checkpoint.reader import read_saved
from vqim.checkpoint.store import HostArray


@pytest.mark.parametrize("name", ["metadata.json", "commit.json", "config.gin", "data/0.json", "measured.json"])
def test_any_changed_byte_of_a_small_file_is_found(tmp_path, name):
    manager = CheckpointManager(tmp_path)
    save(manager, 12345678)
    manager.record(12345678, {"score": 1.25})
    path = tmp_path / "12345678" / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1:])
        if name == "measured.json":
            assert read_saved(LocalFiles(tmp_path), 12345678).metrics == {}
        else:
            with pytest.raises(CheckpointError, match=re.escape(name)):
                manager.open().data_position()


def test_a_step_that_is_being_read_is_removed_when_nobody_reads_it_any_more(tmp_path):
    manager = CheckpointManager(tmp_path, keep=[KeepLatest(1)])
    save(manager, 1)
    reading = CheckpointManager(tmp_path).open()
    save(manager, 2)
    np.testing.assert_array_equal(reading.read("params/net/weight"), WEIGHT + 1)
    assert manager.steps() == [1, 2]
    del reading
    save(manager, 3)
    assert manager.steps() == [3]


def test_two_programs_do_not_save_into_one_directory_at_once(tmp_path):
    # The second one would remove what the first has written, as a leftover, before it is committed.
    entered, gate = threading.Event(), threading.Event()

    def barrier(name):
        entered.set()
        gate.wait(60)

    first, second = CheckpointManager(tmp_path, barrier=barrier), CheckpointManager(tmp_path)
    first.save(1, {"a": HostArray.whole(WEIGHT)}, {}, config="", data_position={})
    entered.wait(60)
    with pytest.raises(CheckpointError, match="another program is saving into"):
        save(second, 1)
    gate.set()
    first.wait()
    np.testing.assert_array_equal(second.open(1).read("a"), WEIGHT)


def test_a_step_that_is_not_whole_is_not_committed(tmp_path, monkeypatch):
    original = LocalFiles.sync

    def sync_and_lose(self, path):
        original(self, path)
        self.remove(f"{path}/metadata.json")

    monkeypatch.setattr(LocalFiles, "sync", sync_and_lose)
    with pytest.raises(CheckpointError, match="00000001 was not saved: .*metadata.json is missing"):
        save(CheckpointManager(tmp_path), 1)
    assert os.listdir(tmp_path) == []


def test_results_added_to_a_saved_step_are_known_to_policies_and_outlive_a_restart(tmp_path):
    manager = CheckpointManager(tmp_path, keep=[KeepBest("score", 1, "max")])
    for step, score in ((1, 1.0), (2, 3.0), (3, 2.0)):
        save(manager, step)
        manager.record(step, {"score": score, "other": math.nan})
    assert manager.steps() == [2, 3]
    manager = CheckpointManager(tmp_path, keep=[KeepBest("score", 1, "max")])
    save(manager, 4)
    assert manager.steps() == [2, 4]


def test_the_newest_whole_step_is_opened_and_what_is_not_needed_may_be_damaged(tmp_path):
    manager = CheckpointManager(tmp_path)
    for step in (1, 2, 3):
        save(manager, step, {"params/a": np.full(5000, step), "optimizer/a": np.full(7000, step)})
    flip_a_bit(tmp_path / "00000003" / "data" / "0.json")
    flip_a_bit(largest_file(tmp_path / "00000002"))  # holds both arrays, one after the other
    needed = [manager.open("latest_valid", needed=f"^{section}/").step for section in ("params", "optimizer")]
    assert sorted(needed) == [1, 2]
    assert manager.open("latest_valid").step == 1


def test_a_step_set_aside_is_kept_and_not_listed(tmp_path):
    manager = CheckpointManager(tmp_path)
    for step in (1, 2, 3):
        save(manager, step)
    manager.set_aside_after(1)
    assert manager.steps() == [1]
    assert sorted(os.listdir(tmp_path)) == ["00000001", "00000002.aside", "00000003.aside"]
    save(manager, 2)
    manager.set_aside_after(1)
    assert sorted(os.listdir(tmp_path)) == ["00000001", "00000002.2.aside", "00000002.aside", "00000003.aside"]


def test_a_step_of_the_version_without_checksums_is_still_read(tmp_path):
    manager = CheckpointManager(tmp_path)
    save(manager, 1, loss=2.0)
    folder = tmp_path / "00000001"
    (folder / "commit.json").write_text('{"schema_version": 1, "step": 1, "metrics": {"loss": 2.0}}')
    (folder / "metadata.json").write_text((folder / "metadata.json").read_text().replace(
        '"schema_version": 2', '"schema_version": 1'))
    np.testing.assert_array_equal(manager.open().read("params/net/weight"), WEIGHT + 1)
    assert read_saved(LocalFiles(tmp_path), 1) == Saved(1, {"loss": 2.0})
