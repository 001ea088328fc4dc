"""Signals as a wish to stop."""
import signal

import pytest

from vqim.training.interrupts import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish_and_the_second_one_does_what_it_did_before(number):
    previous = signal.signal(number, lambda number, frame: seen.append(number))
    seen = []
    try:
        with Interrupts() as interrupts:
            assert interrupts.requested is None
            signal.raise_signal(number)
            assert (interrupts.requested, seen) == (signal.Signals(number).name, [])
            signal.raise_signal(number)
            assert seen == [number]
    finally:
        signal.signal(number, previous)


def test_handlers_are_as_they_were_afterwards_also_after_an_error():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RuntimeError), Interrupts():
        raise RuntimeError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
