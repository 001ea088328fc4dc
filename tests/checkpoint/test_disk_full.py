"""Real failures of real writes: a file system of 2 MiB, and a limit on the size of files."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

# Saves step 1, which fits, and step 2, which does not; prints what was raised, what is left, and whether it goes on.
PROGRAM = """
import json, os, resource, sys
import numpy as np
from vqim.checkpoint.errors import CheckpointError
from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.policy import KeepLatest
from vqim.checkpoint.store import HostArray

directory, limit = sys.argv[1], int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
manager = CheckpointManager(directory, keep=[KeepLatest(1)])

def save(step, size):
    values = np.full(size, step, np.float32)
    manager.save(step, {"a": HostArray.whole(values), "b": HostArray.whole(values)}, {}, config="", data_position={})
    manager.wait()

save(1, 1000)
try:
    save(2, 1 << 20)
    message = None
except CheckpointError as error:
    message = str(error)
left = os.listdir(directory)
first = manager.open().read("a")
save(3, 1000)
print(json.dumps({"message": message, "left": left, "first": [first.size, float(first.min()), float(first.max())],
                  "then": manager.steps()}))
"""


def run(directory, limit):
    repository = pathlib.Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", PROGRAM, str(directory), str(limit)], text=True, timeout=120,
                         env={**os.environ, "PYTHONPATH": str(repository)}, capture_output=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


@pytest.fixture
def small_disk(tmp_path):
    """A directory and a limit on each file's size: a tmpfs of 2 MiB without such a limit; where this user may not
    mount anything, a plain directory with a limit of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True)
    yield disk, (1 << 20 if mounted.returncode else 0)
    if mounted.returncode == 0:
        subprocess.run(["umount", disk], check=True)


def check_that_the_previous_checkpoint_survived(result, directory, reason):
    assert result["message"].startswith(
        f"checkpoint {directory}/00000002 was not saved: {reason}; checkpoint {directory}/00000001 is whole, and the "
        f"run resumes from it. Arrays of 8.0 MiB were to be written to {directory}, where ")
    assert result["left"] == ["00000001"]
    assert result["first"] == [1000, 1.0, 1.0]
    assert result["then"] == [3]


def test_a_full_disk_keeps_the_previous_checkpoint_and_does_not_stay_full(small_disk):
    disk, limit = small_disk
    result = run(disk / "checkpoints", limit)
    reason = "File too large" if limit else "No space left on device"
    check_that_the_previous_checkpoint_survived(result, disk / "checkpoints", reason)


def test_a_file_size_limit_is_told_like_a_full_disk(tmp_path):
    check_that_the_previous_checkpoint_survived(run(tmp_path, 1 << 20), tmp_path, "File too large")
