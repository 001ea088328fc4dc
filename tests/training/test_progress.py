"""Speeds and the time left, on a clock that the tests set."""
import pytest

from vqim.training import progress
from vqim.training.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock whose time is `clock.now`."""
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_speeds_are_those_since_the_last_reading(clock):
    run = Progress(first_step=0, num_steps=100, batch_size=32, peak_flops=None)
    clock.now += 50  # a slow beginning: compilation
    run.measure(10, step_flops=10**12)
    clock.now += 5
    assert run.measure(20, step_flops=10**12) == {
        "speed/step_seconds": 0.5, "speed/images_per_second": 64.0, "speed/model_tflops_per_second": 2.0}


def test_pauses_do_not_count(clock):
    run = Progress(0, 100, 32, None)
    clock.now += 5
    with run.pause():
        clock.now += 1000
    assert run.measure(10, 0)["speed/step_seconds"] == 0.5


def test_utilisation_is_a_share_of_the_peak_where_that_is_known(clock):
    run = Progress(0, 100, 32, peak_flops=8e12)
    clock.now += 5
    assert run.measure(10, step_flops=10**12)["speed/model_flops_utilization"] == 0.25


@pytest.mark.parametrize("step_seconds, left", [(0.5, "0:00:45"), (60.0, "1:30:00"), (1000.0, "25:00:00")])
def test_the_line_says_how_long_the_remaining_steps_take(clock, step_seconds, left):
    run = Progress(first_step=0, num_steps=100, batch_size=32, peak_flops=None)
    clock.now += 10 * step_seconds
    run.measure(10, 0)
    line = run.line({"loss": 1.23456})
    assert line.startswith("step 10/100  loss 1.2346  ")
    assert line.endswith(f"  {left} left")


def test_a_resumed_run_counts_from_where_it_began(clock):
    run = Progress(first_step=40, num_steps=100, batch_size=32, peak_flops=None)
    clock.now += 5
    assert run.measure(50, 0)["speed/step_seconds"] == 0.5
