"""kill -9 between every two operations of a save: the checkpoint before it, or the new one, is whole."""
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.policy import KeepLatest
from vqim.checkpoint.store import HostArray

VALUES = np.arange(3000, dtype=np.float32)

# For N = 0, 1, ... a fork of this program saves step 2 over a copy of a directory that holds step 1, and is killed
# before its N-th operation, until one survives. Prints the operations and how each fork ended.
HARNESS = """
import json, os, shutil, signal, sys
import numpy as np
from vqim.checkpoint import store
from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.policy import KeepLatest
from vqim.checkpoint.store import HostArray

start, work, by_rename = sys.argv[1], sys.argv[2], sys.argv[3] == "rename"

def save_until(victim):
    directory = f"{work}/{victim}"
    shutil.copytree(start, directory)
    operations = []

    def watched(owner, name):
        original = getattr(owner, name)
        def operation(*args, **kwargs):
            if len(operations) == victim:
                os.kill(os.getpid(), signal.SIGKILL)
            operations.append([name, *(str(arg).removeprefix(directory + "/") for arg in args if isinstance(arg, str))])
            return original(*args, **kwargs)
        setattr(owner, name, operation)

    for name in ("makedirs", "fsync", "replace", "rename", "remove", "unlink", "rmdir"):
        watched(os, name)
    watched(store, "write_arrays")
    watched(store, "merge")
    manager = CheckpointManager(directory, keep=[KeepLatest(1)], by_rename=by_rename)
    values = np.arange(3000, dtype=np.float32)
    manager.save(2, {"a": HostArray.whole(values + 2)}, {}, config="step 2", data_position={"step": 2})
    manager.wait()
    with open(f"{work}/operations.json", "w") as file:
        json.dump(operations, file)

for victim in range(1000):
    pid = os.fork()
    if pid == 0:
        save_until(victim)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if not os.WIFSIGNALED(status):
        sys.exit(os.WEXITSTATUS(status))
    assert os.WTERMSIG(status) == signal.SIGKILL, status
"""


@pytest.fixture(scope="module", params=["rename", "file"])
def crashes(request, tmp_path_factory):
    """The operations of a save, and the directories left by kills before each of them."""
    root = tmp_path_factory.mktemp(request.param)
    save(root / "start", 1, request.param)
    (root / "work").mkdir()
    repository = pathlib.Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", HARNESS, str(root / "start"), str(root / "work"), request.param],
                         env={**os.environ, "PYTHONPATH": str(repository)}, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    operations = json.loads((root / "work" / "operations.json").read_text())
    return request.param, operations, [root / "work" / str(victim) for victim in range(len(operations))]


def save(directory, step, protocol):
    manager = CheckpointManager(directory, keep=[KeepLatest(1)], by_rename=protocol == "rename")
    manager.save(step, {"a": HostArray.whole(VALUES + step)}, {}, config=f"step {step}", data_position={"step": step})
    manager.wait()
    return manager


def commit_point(protocol, operations):
    """Number of the operation by which step 2 comes to exist."""
    wanted = (["rename", "00000002.tmp", "00000002"] if protocol == "rename" else
              ["replace", "00000002/commit.json.tmp", "00000002/commit.json"])
    assert operations.count(wanted) == 1
    return operations.index(wanted)


def test_the_kills_fall_between_all_stages_of_a_save(crashes):
    _, operations, _ = crashes
    written = [operation[-1].split("/", 1)[1] for operation in operations if operation[0] == "replace"]
    assert written == ["shards/0.json", "data/0.json", "config.gin", "metadata.json", "commit.json"]
    names = [operation[0] for operation in operations]
    assert names.index("write_arrays") < names.index("merge") < names.index("unlink")


def test_the_latest_step_is_the_old_one_before_the_commit_and_the_new_one_after(crashes):
    protocol, operations, directories = crashes
    commit = commit_point(protocol, operations)
    assert 10 < commit < len(operations) - 5
    for victim, directory in enumerate(directories):
        manager = CheckpointManager(directory, by_rename=protocol == "rename")
        assert manager.latest_step() == (1 if victim <= commit else 2), (victim, operations[victim])


def test_every_step_that_is_listed_is_whole(crashes):
    protocol, _, directories = crashes
    for directory in directories:
        manager = CheckpointManager(directory, by_rename=protocol == "rename")
        for step in manager.steps():
            checkpoint = manager.open(step)
            assert (checkpoint.config, checkpoint.data_position()) == (f"step {step}", {"step": step})
            np.testing.assert_array_equal(checkpoint.read("a"), VALUES + step)


def test_the_next_start_saves_and_leaves_nothing_of_the_crash(crashes):
    protocol, operations, directories = crashes
    commit = commit_point(protocol, operations)
    for victim, directory in enumerate(directories):
        step = 2 if victim <= commit else 3
        manager = save(directory, step, protocol)
        assert os.listdir(directory) == [f"{step:08d}"]
        np.testing.assert_array_equal(manager.open().read("a"), VALUES + step)
