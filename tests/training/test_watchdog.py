"""A run that hangs, on one process and on two."""
import contextlib
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from vqim.runtime.hosts import HostNetwork, OneHost
from vqim.training.watchdog import EXIT_CODE, Watchdog


def stacks(folder, index=0):
    path = folder / f"stacks_{index}.txt"
    return path.read_text() if path.exists() else ""


def wait_in_a_function_of_this_name(event):
    event.wait(20)


def test_the_stacks_of_all_threads_are_written_when_a_step_hangs(tmp_path, caplog):
    event = threading.Event()
    other = threading.Thread(target=wait_in_a_function_of_this_name, args=(event,))
    other.start()
    with Watchdog(OneHost(), tmp_path, least_seconds=0.3) as watchdog:
        with watchdog.watching("step"):
            time.sleep(0.01)
        with watchdog.watching("step"):
            end = time.monotonic() + 20
            while "wait_in_a_function_of_this_name" not in stacks(tmp_path) and time.monotonic() < end:
                time.sleep(0.05)
    event.set()
    other.join()
    assert "process 0: a step has not ended after 0 s; the longest before it took 0.0 s" in stacks(tmp_path)
    assert "wait_in_a_function_of_this_name" in stacks(tmp_path)
    assert "test_the_stacks_of_all_threads_are_written_when_a_step_hangs" in stacks(tmp_path)
    assert caplog.text.count("It hangs") == 1


@pytest.mark.parametrize(("seconds", "compiles"), [(0.35, True), (0.1, False)])
def test_neither_a_compilation_nor_a_step_a_little_longer_counts_as_hanging(tmp_path, seconds, compiles):
    with Watchdog(OneHost(), tmp_path, least_seconds=0.2) as watchdog:
        with watchdog.watching("step", compiles=True):
            time.sleep(0.3)
        for _ in range(2):
            with watchdog.watching("step"):
                time.sleep(0.05)
        with watchdog.watching("step", compiles=compiles):
            time.sleep(seconds)
        time.sleep(0.6)
    assert stacks(tmp_path) == ""


def test_the_second_of_a_kind_may_lower_the_limit_that_the_first_made(tmp_path):
    with Watchdog(OneHost(), tmp_path, least_seconds=0.1) as watchdog:
        for seconds in (0.3, 0.01, 1.5):  # ten times the first would be 3 s
            with watchdog.watching("batch"):
                time.sleep(seconds)
    assert "a batch has not ended" in stacks(tmp_path)


def test_every_process_writes_its_stacks_when_one_of_them_finds_that_it_hangs(tmp_path):
    first = HostNetwork("localhost", 0, 0, 2, timeout_seconds=20)
    second = HostNetwork("localhost", first.port, 1, 2, timeout_seconds=20)
    with Watchdog(first, tmp_path, least_seconds=100), Watchdog(second, tmp_path, least_seconds=0.2) as hanging:
        with hanging.watching("step"):
            pass
        with hanging.watching("step"):
            end = time.monotonic() + 20
            while not (stacks(tmp_path, 0) and stacks(tmp_path, 1)) and time.monotonic() < end:
                time.sleep(0.05)
    assert "process 1: a step has not ended" in stacks(tmp_path, 0)
    assert "process 1: a step has not ended" in stacks(tmp_path, 1)


def test_a_process_that_is_told_to_ends_itself_when_it_hangs(tmp_path):
    program = """if True:
        import sys, time
        from vqim.runtime.hosts import OneHost
        from vqim.training.watchdog import Watchdog
        with Watchdog(OneHost(), sys.argv[1], least_seconds=0.1, ends=True) as watchdog:
            for seconds in (0, 60):
                with watchdog.watching("step"):
                    time.sleep(seconds)
    """
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])})
    assert ran.returncode == EXIT_CODE
    assert "It hangs: process 0: a step has not ended" in ran.stderr
    assert "Current thread" in ran.stderr and "Thread 0x" in stacks(tmp_path)


@pytest.mark.parametrize("has_ended, code", [(False, EXIT_CODE), (True, 0)], ids=["killed", "ended"])
def test_silence_of_another_process_ends_process_0_unless_that_one_had_ended(tmp_path, has_ended, code):
    program = """if True:
        import sys, time
        from vqim.runtime.hosts import HostNetwork
        from vqim.training.watchdog import Watchdog
        hosts = HostNetwork("localhost", 0, 0, 2, timeout_seconds=20)
        print(hosts.port, flush=True)
        with Watchdog(hosts, sys.argv[1], silent_seconds=1):
            sys.stdin.read(1)
            time.sleep(4)
    """
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}) as watching:
        network = HostNetwork("localhost", int(watching.stdout.readline()), 1, 2, timeout_seconds=20)
        network.count("alive/1", 3)
        if has_ended:
            network.post("left/1", "yes")
        _, errors = watching.communicate("x", timeout=60)
    assert watching.returncode == code, errors
    assert ("Process 1 has given no sign of life for 1 s" in errors) == bool(code)


@pytest.mark.parametrize(("error", "says"), [
    (None, {"left/1": "yes"}), (KeyboardInterrupt, {"ended": "Process 1 was stopped at once (KeyboardInterrupt)"}),
    (ValueError, {})])
def test_a_process_says_that_it_has_left_only_where_it_has_ended_well(tmp_path, error, says):
    first = HostNetwork("localhost", 0, 0, 2, timeout_seconds=20)
    second = HostNetwork("localhost", first.port, 1, 2, timeout_seconds=20)
    with contextlib.suppress(error or ()), Watchdog(second, tmp_path):
        if error:
            raise error
    assert {name: first.read(name) for name in ("left/1", "ended") if first.read(name)} == says
