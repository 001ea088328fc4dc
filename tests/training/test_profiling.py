"""Which steps are traced."""
import contextlib

import pytest

from vqim.training.profiling import Profiler


class Recorder:
    """A runtime whose trace is a list of what happened."""

    def __init__(self):
        self.events = []

    @contextlib.contextmanager
    def profile(self, directory):
        self.events.append(f"begin {directory}")
        yield
        self.events.append("end")


@pytest.mark.parametrize("first, last, events", [
    (0, 9, [1, 2, 3, "begin run", 4, 5, "end", 6, 7, 8, 9]),
    (3, 5, ["begin run", 4, 5, "end"]),
    (0, 4, [1, 2, 3, "begin run", 4, "end"]),
    (4, 6, [5, 6]),  # a run that goes on in the middle traces nothing
])
def test_the_steps_after_the_first_number_up_to_the_second_are_traced(first, last, events, caplog):
    recorder = Recorder()
    profiler = Profiler(recorder, "run", range(3, 5))
    for step in range(first, last):
        profiler.at(step)
        recorder.events.append(step + 1)
    profiler.close()
    assert recorder.events == events
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["No trace: this process begins at step 4, after step 3."] * (first == 4)


def test_without_steps_nothing_is_traced():
    recorder = Recorder()
    profiler = Profiler(recorder, "run", None)
    for step in range(3):
        profiler.at(step)
    profiler.close()
    assert recorder.events == []
