"""One writer of a directory: refused, taken over, and seen from another machine."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from vqim.checkpoint import lock
from vqim.checkpoint.lock import Lock, LockedError

HOLD = """
import sys, time
from vqim.checkpoint.lock import Lock
with Lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def start(directory):
    """Another process that holds the directory."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])})
    assert process.stdout.readline() == "held\n"
    return process


def test_a_directory_is_held_by_one_process_which_the_refusal_names(tmp_path):
    process = start(tmp_path)
    try:
        with pytest.raises(LockedError) as refusal:
            with Lock(tmp_path):
                pass
        assert str(refusal.value).startswith(f"{tmp_path} is being written by process {process.pid} on ")
    finally:
        process.kill()
        process.wait()


def test_the_lock_of_a_dead_process_is_taken_over_at_once(tmp_path, caplog):
    process = start(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / lock.FILE).exists()
    begin = time.monotonic()
    with Lock(tmp_path):
        assert json.loads((tmp_path / lock.FILE).read_text())["process"] == os.getpid()
    assert time.monotonic() - begin < 5
    assert f"was left by process {process.pid}" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_one_process_cannot_hold_a_directory_twice_and_can_hold_it_again(tmp_path):
    with Lock(tmp_path):
        with pytest.raises(LockedError):
            with Lock(tmp_path):
                pass
        assert (tmp_path / lock.FILE).exists()
    with Lock(tmp_path):
        pass


def write_of_another_machine(directory):
    path = directory / lock.FILE
    path.write_text(json.dumps({"host": "far", "process": 7, "boot": "another", "since": "2026-01-01 00:00:00"}))
    return path


def test_another_machines_lock_is_taken_over_when_it_gives_no_sign_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_DEAD_SECONDS", 0.5)
    write_of_another_machine(tmp_path)
    with Lock(tmp_path):
        pass


def test_another_machines_lock_that_is_renewed_is_respected(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_DEAD_SECONDS", 20)
    path = write_of_another_machine(tmp_path)
    timer = threading.Timer(0.5, os.utime, (path,))
    timer.start()
    with pytest.raises(LockedError, match="being written by process 7 on far"):
        with Lock(tmp_path):
            pass
    timer.join()


def test_a_lock_is_renewed_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_RENEW_SECONDS", 0.05)
    with Lock(tmp_path):
        before = os.stat(tmp_path / lock.FILE).st_mtime_ns
        end = time.monotonic() + 20
        while os.stat(tmp_path / lock.FILE).st_mtime_ns == before:
            assert time.monotonic() < end
            time.sleep(0.02)
