"""Signals as a wish to stop, of one process and of several."""
import concurrent.futures
import random
import signal
import threading
import time

import pytest

from vqim.runtime.hosts import HostNetwork, OneHost
from vqim.training.interrupts import CommonStop, Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish_and_the_second_one_does_what_it_did_before(number):
    previous = signal.signal(number, lambda number, frame: seen.append(number))
    seen = []
    try:
        with Interrupts(OneHost()) as interrupts:
            assert interrupts.tick() is None
            signal.raise_signal(number)
            assert (interrupts.tick(), seen) == (signal.Signals(number).name, [])
            signal.raise_signal(number)
            assert seen == [number]
    finally:
        signal.signal(number, previous)


def test_handlers_are_as_they_were_afterwards_also_after_an_error():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RuntimeError), Interrupts(OneHost()):
        raise RuntimeError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


class Host:
    """A process that makes steps, here a thread; like one that sends work to its devices it may be ahead of others.

    Args:
      network: of all.
      pace: seconds a step.
      num_steps: after which it ends.
    """

    def __init__(self, network, pace, num_steps):
        self.network, self.pace, self.num_steps = network, pace, num_steps
        self.step, self.signal = 0, None

    def run(self):
        """Makes steps to the end or to the common stop; returns the last step, and the signal that it stopped on."""
        stop = CommonStop(lambda: self.signal, self.network)
        stop.start()
        stopped = None
        while self.step < self.num_steps and stopped is None:
            time.sleep(self.pace * (0.5 + random.random()))
            self.step += 1
            stopped = stop.tick()
        stop.close()
        return self.step, stopped


def run(count, signals, num_steps=10_000):
    """Runs some hosts, and gives those in `signals` their signal after so many seconds."""
    first = HostNetwork("localhost", 0, 0, count, timeout_seconds=20)
    networks = [first, *(HostNetwork("localhost", first.port, i, count, timeout_seconds=20) for i in range(1, count))]
    hosts = [Host(network, pace=0.003 * (1 + index), num_steps=num_steps) for index, network in enumerate(networks)]
    timers = [threading.Timer(seconds, setattr, (hosts[index], "signal", name))
              for index, (seconds, name) in signals.items()]
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        ends = [pool.submit(host.run) for host in hosts]
        for timer in timers:
            timer.start()
        return [end.result(timeout=60) for end in ends]


@pytest.mark.parametrize("signals", [
    {0: (0.1, "SIGTERM")}, {2: (0.35, "SIGTERM")}, {0: (0.2, "SIGTERM"), 1: (0.2, "SIGTERM"), 2: (0.21, "SIGTERM")},
])
def test_all_processes_stop_after_the_same_step_wherever_the_signal_came(signals):
    results = run(3, signals)
    assert len(set(results)) == 1
    step, stopped = results[0]
    assert stopped == "SIGTERM" and 0 < step < 10_000


def test_all_processes_save_after_the_same_steps_and_then_stop_together():
    wishes = iter(["save", "save", "SIGTERM"])

    class Saving(Host):
        def run(self):
            asked = [next(wishes)] if self.network.process_index == 1 else []
            stop = CommonStop(lambda: asked[-1] if asked else None, self.network)
            stop.start()
            acts = []
            while not acts or acts[-1][1] == "save":
                time.sleep(self.pace * (0.5 + random.random()))
                self.step += 1
                if wish := stop.tick():
                    acts.append((self.step, wish))
                    if asked:
                        asked[:] = [next(wishes, None)]
            stop.close()
            return acts

    first = HostNetwork("localhost", 0, 0, 2, timeout_seconds=20)
    hosts = [Saving(network, 0.003 * (1 + index), 0) for index, network in enumerate(
        [first, HostNetwork("localhost", first.port, 1, 2, timeout_seconds=20)])]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first_acts, second_acts = (pool.submit(host.run) for host in hosts)
        assert first_acts.result(60) == second_acts.result(60)
    assert [wish for _, wish in first_acts.result()] == ["save", "save", "SIGTERM"]


def test_steps_wait_for_no_answer_from_the_network():
    asked, answer = threading.Event(), threading.Event()

    class Slow(OneHost):
        process_count = 2

        def read(self, name):
            asked.set()
            answer.wait()
            return None

    stop = CommonStop(lambda: None, Slow())
    stop.start()
    asked.wait()
    assert [stop.tick() for _ in range(99)] == [None] * 99
    answer.set()
    stop.close()


def test_a_signal_when_another_process_has_made_its_last_step_does_not_hang():
    results = run(3, {2: (0.25, "SIGTERM")}, num_steps=60)  # the first two take 0.18 s and 0.36 s
    assert results == [(60, None)] * 3


def test_steps_go_on_where_process_0_cannot_be_asked_any_more():
    first = HostNetwork("localhost", 0, 0, 2)
    second = HostNetwork("localhost", first.port, 1, 2)
    stop = CommonStop(lambda: None, second)
    stop.start()
    del first
    time.sleep(0.5)
    assert stop.tick() is None
    stop.close()
