"""What is saved when something fails, and when: on a task of one number, whose updates are known."""
import errno
import time

import numpy as np
import pytest

from tests.training.sums import Score, Sum, Values
from vqim.checkpoint import store
from vqim.checkpoint.errors import CheckpointError
from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.policy import KeepBest, KeepLatest
from vqim.runtime.torch import TorchRuntime
from vqim.training import saver
from vqim.training.experiment import Experiment
from vqim.training.interrupts import Interrupts
from vqim.training.loop import train
from vqim.training.state import NonFiniteError
from vqim.training.summaries import read_metrics


@pytest.fixture
def run(tmp_path):
    """Trains in `tmp_path`; returns what `train` returns."""
    def start(data=None, num_steps=10, task=None, restore_step=None, **settings):
        experiment = Experiment(task or Sum(), data or Values(), num_steps, 1, **settings)
        return train(experiment, workdir=tmp_path, runtime=TorchRuntime(), config="", restore_step=restore_step)

    return start


@pytest.fixture
def manager(tmp_path):
    return CheckpointManager(tmp_path / "checkpoints")


@pytest.fixture
def broken_saves(monkeypatch):
    """Makes the next so many saves fail, as on a full disk, and lets the run try again at once."""
    monkeypatch.setattr(saver, "_FIRST_RETRY_SECONDS", 0.0)
    original, left = store.write_arrays, [0]

    def write(*args):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*args)

    monkeypatch.setattr(store, "write_arrays", write)
    return left


def fail(*args):
    raise RuntimeError("out of luck")


def fail_at(number):
    """A `watch` that raises at a number."""
    return lambda current: fail() if current == number else None


@pytest.mark.parametrize("step", [4, 10])
def test_what_was_computed_is_saved_when_an_evaluator_fails(run, manager, step):
    with pytest.raises(RuntimeError, match="out of luck"):
        run(evaluators=[Score(4 if step == 4 else 0, [], fail_at(1))])
    assert manager.steps() == [step]
    assert manager.open().read("params/sum") == sum(range(step + 1))


def test_what_was_computed_is_saved_when_the_data_fail(run, manager):
    with pytest.raises(RuntimeError, match="out of luck"):
        run(Values(watch=fail_at(7)))
    assert manager.open().read("params/sum") == 1 + 2 + 3 + 4 + 5 + 6
    assert manager.open().data_position() == {"next": 7}
    assert float(run().state.arrays["params/sum"]) == 55.0


@pytest.mark.parametrize(("writes", "steps"), [(False, [5]), (True, [4])])
def test_a_step_that_fails_is_saved_unless_its_update_had_begun(run, manager, writes, steps):
    class Failing(Sum):
        def train_step(self, state, batch, *rest):
            if not batch["values"].is_meta and batch["values"] == 6:
                if writes:
                    state["params/sum"].add_(100.0)
                fail()
            return super().train_step(state, batch, *rest)

    with pytest.raises(RuntimeError, match="out of luck"):
        run(task=Failing(), save_every=4, keep=[KeepLatest(1)])
    assert manager.steps()[-1:] == steps
    assert manager.open().read("params/sum") == sum(range(steps[0] + 1))


def test_an_emergency_removes_nothing_and_names_the_newest_step_known_to_be_good(run, manager):
    with pytest.raises(NonFiniteError, match="is saved as step 6. That state may be bad already; the newest checkpoint "
                                             "known to be good is step 4, from which --restore=4 goes on"):
        run(Values(bad=7), save_every=4, keep=[KeepLatest(1)])
    assert manager.steps() == [4, 6]


def test_a_run_goes_on_from_an_earlier_step_and_sets_later_ones_aside(run, manager, tmp_path):
    with pytest.raises(NonFiniteError):
        run(Values(bad=7), save_every=4, keep=[KeepLatest(1)])
    assert float(run(num_steps=8, restore_step=4, keep=[KeepLatest(9)]).state.arrays["params/sum"]) == 36.0
    assert manager.steps() == [4, 8]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "00000004", "00000006.aside", "00000008"]


def test_a_failed_save_is_tried_again_before_the_next_regular_one(run, manager, broken_saves):
    broken_saves[0] = 1
    run(Values(watch=lambda value: time.sleep(0.1)), save_every=4, keep=[KeepLatest(9)])
    saved = manager.steps()
    assert saved[-2:] == [8, 10] and 4 not in saved
    assert 5 in saved or 6 in saved or 7 in saved


def test_a_run_stops_when_saves_fail_again_and_again(run, manager, broken_saves):
    broken_saves[0] = 1000
    with pytest.raises(CheckpointError, match="No space left on device; there is no earlier checkpoint.* These were 5 "
                                              "failed saves in a row"):
        run(num_steps=1000, save_every=1)


def test_the_last_save_is_tried_as_often_as_others_before_the_run_gives_up(run, manager, broken_saves):
    broken_saves[0] = 4
    run()
    assert manager.steps() == [10]


def test_a_run_is_saved_by_the_clock(run, manager):
    run(save_minutes=1e-9, keep=[KeepLatest(99)])
    assert manager.steps() == list(range(1, 11))


def test_a_save_that_is_due_by_clock_and_step_is_made_once(run, manager, monkeypatch):
    asked = [False] * 3 + [True] + [False] * 6
    monkeypatch.setattr(Interrupts, "tick", lambda interrupts: setattr(interrupts, "_save_now", asked.pop(0)))
    run(save_every=4, keep=[KeepLatest(99)])
    assert manager.steps() == [4, 8, 10]


def test_the_best_step_is_known_also_where_a_restart_made_up_for_its_evaluation(run, manager):
    keep = [KeepBest("score", mode="max", num=1)]
    with pytest.raises(RuntimeError):
        run(evaluators=[Score(4, [], fail_at(1))], keep=keep)
    run(evaluators=[Score(4, [9.0, 5.0, 1.0])], keep=keep)
    assert manager.steps() == [4, 10]


def test_the_best_step_is_known_also_where_the_run_was_killed_after_its_evaluation(run, manager, tmp_path):
    keep = [KeepBest("score", mode="max", num=1)]
    run(num_steps=4, evaluators=[Score(4, [9.0])], keep=keep)
    (tmp_path / "checkpoints/00000004/measured.json").unlink()  # the summaries are written first
    run(evaluators=[Score(4, [5.0, 1.0])], keep=keep)
    assert manager.steps() == [4, 10]


def test_summaries_that_cannot_be_written_do_not_end_the_run(run, manager, tmp_path, caplog):
    def spoil(value):
        if value == 3:
            (tmp_path / "metrics.jsonl").rename(tmp_path / "elsewhere")
            (tmp_path / "metrics.jsonl").mkdir()
        if value == 6:
            (tmp_path / "metrics.jsonl").rmdir()

    run(Values(watch=spoil), log_every=1)
    assert caplog.text.count("What writes them goes on") == 1
    assert [row["step"] for row in read_metrics(tmp_path)] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert manager.steps() == [10]


def test_the_shares_of_time_add_up_to_one(run, tmp_path):
    run(evaluators=[Score(4, [0.0] * 3)])
    (row,) = [row for row in read_metrics(tmp_path) if "loss" in row]
    shares = {name: value for name, value in row.items() if name.startswith("goodput/")}
    assert sorted(shares) == ["goodput/compiling", "goodput/evaluating", "goodput/saving", "goodput/steps",
                              "goodput/waiting_for_data"]
    np.testing.assert_allclose(sum(shares.values()), 1.0, rtol=1e-9)
    assert all(0 < share < 1 for share in shares.values())
