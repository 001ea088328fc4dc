"""The lock of an object store, with conditional writes."""
import json
import subprocess
import sys
import threading

import pytest

from vqim.checkpoint.files import BucketFiles
from vqim.checkpoint.lease import EXIT_CODE, Lease
from vqim.checkpoint.lock import LockedError

OTHER = {"host": "elsewhere", "process": 7, "boot": "another", "since": "2026-01-01 00:00:00"}


def test_a_second_writer_is_refused_while_the_first_renews_its_lock(bucket):
    with (Lease(f"{bucket}/run", renew_seconds=0.1), pytest.raises(LockedError, match=r"process \d+ on .* \(since "),
          Lease(f"{bucket}/run", lasts_seconds=3.0)):
        pass


def test_a_lock_is_removed_at_its_end(bucket):
    with Lease(f"{bucket}/run"):
        assert BucketFiles(f"{bucket}/run").children() == ["lock.json"]
    assert BucketFiles(f"{bucket}/run").children() == []


def test_a_lock_of_another_host_that_stands_still_is_taken_over(bucket):
    BucketFiles(f"{bucket}/run").write("lock.json", json.dumps(OTHER).encode())
    with Lease(f"{bucket}/run", lasts_seconds=0.5):
        owner = json.loads(BucketFiles(f"{bucket}/run").read("lock.json"))
    assert owner["host"] != "elsewhere"


def test_of_many_that_start_at_once_one_gets_the_lock(bucket):
    starting, outcomes, done = threading.Barrier(6), [], threading.Event()

    def start():
        lease = Lease(f"{bucket}/run", renew_seconds=0.05, lasts_seconds=3.0)
        starting.wait()
        try:
            with lease:
                outcomes.append("has it")
                done.wait()
        except LockedError:
            outcomes.append("refused")

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 6:
        threads[0].join(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["has it"] + 5 * ["refused"]


def test_a_process_whose_lock_was_taken_over_ends_at_once(bucket):
    program = (f"from vqim.checkpoint.lease import Lease; import time\n"
               f"with Lease('{bucket}/run', renew_seconds=0.2): print('has it', flush=True); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    assert process.stdout.readline() == "has it\n"
    BucketFiles(f"{bucket}/run").write("lock.json", json.dumps(OTHER).encode())
    assert process.wait(30) == EXIT_CODE
    assert "taken over by process 7 on elsewhere" in process.stderr.read()
    assert json.loads(BucketFiles(f"{bucket}/run").read("lock.json")) == OTHER
