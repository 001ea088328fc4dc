import concurrent.futures
import multiprocessing
import random
import threading
import time

import pytest

from vqim.runtime.barrier import HostBarrier


@pytest.fixture
def barriers():
    """Makes a `HostBarrier` for each of some processes, which are threads here."""
    def make(count, **settings):
        first = HostBarrier("localhost", 0, 0, count, **settings)
        return [first, *(HostBarrier("localhost", first.port, index, count, **settings) for index in range(1, count))]

    return make


def test_nobody_leaves_before_everyone_has_come(barriers):
    arrived, seen = [], []

    def come(barrier):
        time.sleep(random.random() / 5)
        arrived.append(barrier)
        barrier.wait("save/3/begin")
        seen.append(len(arrived))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(come, barriers(4)))
    assert seen == [4] * 4


def test_a_name_can_be_used_again(barriers):
    rounds, lock, torn = [0, 0, 0], threading.Lock(), []

    def come(index, barrier):
        for number in range(5):
            time.sleep(random.random() / 50)
            with lock:
                rounds[index] = number + 1
            barrier.wait("again")
            with lock:
                torn.extend(other for other in rounds if other < number + 1)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(come, range(3), barriers(3)))
    assert rounds == [5, 5, 5] and torn == []


def test_process_0_stays_with_its_store_until_the_others_know(barriers):
    first, *others = barriers(3)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waits = [pool.submit(barrier.wait, "end") for barrier in others]
        time.sleep(0.2)
        first.wait("end")
        del first
        for wait in waits:
            wait.result()


def test_who_waits_too_long_is_told_how_many_came(barriers):
    first, second, _ = barriers(3, timeout_seconds=0.3)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waits = [pool.submit(barrier.wait, "commit") for barrier in (first, second)]
    for wait in waits:
        with pytest.raises(TimeoutError, match="'commit': 2 of 3 processes"):
            wait.result()


def _meet(port, index, count, queue):
    barrier = HostBarrier("localhost", port, index, count)
    for name in ("a", "b"):
        queue.put((name, index))
        barrier.wait(name)


def test_processes_meet_too():
    context = multiprocessing.get_context("spawn")
    queue, first = context.Queue(), HostBarrier("localhost", 0, 0, 3)
    others = [context.Process(target=_meet, args=(first.port, index, 3, queue)) for index in (1, 2)]
    for process in others:
        process.start()
    first.wait("a")
    assert {queue.get(timeout=30) for _ in others} == {("a", 1), ("a", 2)}
    first.wait("b")
    for process in others:
        process.join(timeout=30)
        assert process.exitcode == 0
