import concurrent.futures
import multiprocessing
import random
import threading
import time

import pytest

from vqim.runtime.hosts import HostNetwork, OneHost


@pytest.fixture
def networks():
    """Makes a `HostNetwork` for each of some processes, which are threads here."""
    def make(count, **settings):
        first = HostNetwork("localhost", 0, 0, count, **settings)
        return [first, *(HostNetwork("localhost", first.port, index, count, **settings) for index in range(1, count))]

    return make


def test_nobody_leaves_before_everyone_has_come(networks):
    arrived, seen = [], []

    def come(network):
        time.sleep(random.random() / 5)
        arrived.append(network)
        network.wait("save/3/begin")
        seen.append(len(arrived))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(come, networks(4)))
    assert seen == [4] * 4


def test_a_name_can_be_used_again(networks):
    rounds, lock, torn = [0, 0, 0], threading.Lock(), []

    def come(index, network):
        for number in range(5):
            time.sleep(random.random() / 50)
            with lock:
                rounds[index] = number + 1
            network.wait("again")
            with lock:
                torn.extend(other for other in rounds if other < number + 1)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(come, range(3), networks(3)))
    assert rounds == [5, 5, 5] and torn == []


def test_process_0_stays_with_its_store_until_the_others_know(networks):
    first, *others = networks(3)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waits = [pool.submit(network.wait, "end") for network in others]
        time.sleep(0.2)
        first.wait("end")
        del first
        for wait in waits:
            wait.result()


def test_who_waits_too_long_is_told_how_many_came(networks):
    first, second, _ = networks(3, timeout_seconds=0.3)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waits = [pool.submit(network.wait, "commit") for network in (first, second)]
    for wait in waits:
        with pytest.raises(TimeoutError, match="'commit': 2 of 3 processes"):
            wait.result()


def _meet(port, index, count, queue):
    network = HostNetwork("localhost", port, index, count)
    for name in ("a", "b"):
        queue.put((name, index))
        network.wait(name)


def test_processes_meet_too():
    context = multiprocessing.get_context("spawn")
    queue, first = context.Queue(), HostNetwork("localhost", 0, 0, 3)
    others = [context.Process(target=_meet, args=(first.port, index, 3, queue)) for index in (1, 2)]
    for process in others:
        process.start()
    first.wait("a")
    assert {queue.get(timeout=30) for _ in others} == {("a", 1), ("a", 2)}
    first.wait("b")
    for process in others:
        process.join(timeout=30)
        assert process.exitcode == 0


def test_the_first_text_posted_under_a_name_is_what_all_read(networks):
    first, second = networks(2)
    assert first.read("mesh") is second.read("mesh") is None
    second.post("mesh", "one")
    first.post("mesh", "two")
    assert [network.read("mesh") for network in (first, second)] == ["one", "one"]


def test_waiting_for_a_text_keeps_no_other_thread_of_the_process_from_asking(networks):
    first, second = networks(2)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(second.get, "late")
        assert second.read("late") is None
        second.post("other", "text")
        first.post("late", "here")
        assert waiting.result() == "here"


def test_a_text_that_does_not_come_is_named(networks):
    with pytest.raises(TimeoutError, match="nothing was posted as 'late' within 0.1 s"):
        networks(1, timeout_seconds=0.1)[0].get("late")


def test_one_process_alone_waits_for_nobody():
    alone = OneHost()
    alone.wait("save")
    alone.post("name", "first")
    alone.post("name", "second")
    assert (alone.read("name"), alone.get("name"), alone.read("other")) == ("first", "first", None)
