"""The loop on a task of one number, whose updates are known: what runs when, and what a checkpoint is told."""
import signal

import pytest

from tests.training.sums import Score, Sum, Values
from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.policy import KeepBest, KeepLatest
from vqim.runtime.torch import TorchRuntime
from vqim.training.experiment import Experiment
from vqim.training.loop import train
from vqim.training.state import NonFiniteError
from vqim.training.summaries import read_metrics


@pytest.fixture
def run(tmp_path):
    """Trains in `tmp_path`; returns what `train` returns."""
    def start(data=None, num_steps=10, **settings):
        experiment = Experiment(Sum(), data or Values(), num_steps, 1, **settings)
        return train(experiment, workdir=tmp_path, runtime=TorchRuntime(), config="the configuration")

    return start


def test_a_reading_is_the_mean_over_the_steps_since_the_last_one(run, tmp_path):
    run(log_every=4)
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(4, 2.5), (8, 6.5), (10, 9.5)]


def test_evaluators_run_when_they_say_and_at_the_end_and_see_the_state_of_that_step(run):
    often, last = Score(4, [0.0] * 3), Score(0, [0.0], name="last")
    run(evaluators=[often, last])
    assert often.sums == [10.0, 36.0, 55.0]
    assert last.sums == [55.0]


def test_two_evaluators_that_measure_the_same_name_are_refused(run):
    with pytest.raises(ValueError, match="evaluators: two measure score; give one of them a `section`"):
        run(evaluators=[Score(0, [0.0]), Score(0, [1.0])])


def test_the_best_checkpoint_is_the_one_that_was_measured(run, tmp_path):
    # Step 4 is the best; step 6, saved after it, was not measured.
    run(evaluators=[Score(4, [9.0, 5.0, 1.0])], save_every=2, keep=[KeepBest("score", mode="max", num=1)])
    assert CheckpointManager(tmp_path / "checkpoints").steps() == [4, 10]


def test_a_checkpoint_has_the_state_the_data_position_and_the_configuration(run, tmp_path):
    run(save_every=4, keep=[KeepLatest(9)])
    manager = CheckpointManager(tmp_path / "checkpoints")
    assert manager.steps() == [4, 8, 10]
    checkpoint = manager.open(4)
    assert checkpoint.read("params/sum") == 1 + 2 + 3 + 4
    assert checkpoint.data_position() == {"next": 5}
    assert checkpoint.config == "the configuration"


def test_a_run_goes_on_with_the_data_that_it_has_not_seen(run):
    run(num_steps=4)
    assert float(run(num_steps=10).state.arrays["params/sum"]) == 55.0


@pytest.mark.parametrize("bad", [1, 3, 7])
def test_a_bad_step_is_named_and_saved_is_what_was_before_it(run, tmp_path, bad):
    with pytest.raises(NonFiniteError, match=f"^step {bad - 1} met values that are not finite, in loss; it changed"):
        run(Values(bad), log_every=5)
    checkpoint = CheckpointManager(tmp_path / "checkpoints").open()
    assert checkpoint.step == bad - 1
    assert checkpoint.read("params/sum") == sum(range(bad))
    assert checkpoint.data_position() == {"next": bad}
    assert [row["step"] for row in read_metrics(tmp_path)] == [5] * (bad > 5)
    assert float(run(Values()).state.arrays["params/sum"]) == 55.0


def test_a_signal_ends_the_run_after_the_step_and_saves_it(run, tmp_path):
    def interrupt(value):
        if value == 6:
            signal.raise_signal(signal.SIGTERM)

    finished = run(Values(watch=interrupt))
    assert (finished.interrupted, finished.state.step) == ("SIGTERM", 6)
    assert CheckpointManager(tmp_path / "checkpoints").open().read("params/sum") == 21


def test_a_signal_in_the_last_step_is_no_interruption(run):
    def interrupt(value):
        if value == 10:
            signal.raise_signal(signal.SIGTERM)

    assert run(Values(watch=interrupt)).interrupted is None


def interrupt_in(batch):
    """A `watch` that sends this process SIGTERM in one batch of each evaluation."""
    return lambda current: signal.raise_signal(signal.SIGTERM) if current == batch else None


def scores(workdir, name="score"):
    """The scores that a run has written, by step."""
    return [(row["step"], row[name]) for row in read_metrics(workdir) if name in row]


@pytest.mark.parametrize("batch", [0, 2])
def test_a_signal_between_two_batches_of_an_evaluation_saves_and_stops(run, tmp_path, batch):
    finished = run(evaluators=[Score(4, [0.5], interrupt_in(batch))])
    assert (finished.interrupted, finished.state.step) == ("SIGTERM", 4)
    assert CheckpointManager(tmp_path / "checkpoints").open().read("params/sum") == 10
    assert scores(tmp_path) == []


def test_a_signal_in_the_last_evaluation_is_an_interruption(run, tmp_path):
    finished = run(evaluators=[Score(0, [0.5], interrupt_in(1))])
    assert (finished.interrupted, finished.state.step) == ("SIGTERM", 10)


def test_the_next_start_runs_the_evaluation_that_was_left_out_and_not_a_second_time(run, tmp_path):
    run(evaluators=[Score(4, [], interrupt_in(1))])
    again = Score(4, [0.4, 0.8, 1.0])
    run(evaluators=[again])
    assert again.sums == [10.0, 36.0, 55.0]
    assert scores(tmp_path) == [(4, 0.4), (8, 0.8), (10, 1.0)]


def test_an_evaluation_left_out_at_the_end_is_run_by_the_next_start_and_by_no_other(run, tmp_path):
    run(evaluators=[Score(0, [], interrupt_in(1))])
    second, third = Score(0, [0.5]), Score(0, [0.6])
    assert run(evaluators=[second]).interrupted is None
    run(evaluators=[third])
    assert (second.sums, third.sums) == ([55.0], [])
    assert scores(tmp_path) == [(10, 0.5)]


def test_a_signal_after_a_step_leaves_its_evaluation_to_the_next_start(run, tmp_path):
    def interrupt(value):
        if value == 4:
            signal.raise_signal(signal.SIGTERM)

    first, second = Score(4, []), Score(4, [0.4, 0.8, 1.0])
    assert run(Values(watch=interrupt), evaluators=[first]).state.step == 4
    run(evaluators=[second])
    assert (first.sums, second.sums) == ([], [10.0, 36.0, 55.0])


def test_evaluators_that_had_finished_before_the_signal_are_not_run_again(run, tmp_path):
    run(evaluators=[Score(4, [0.1], name="first"), Score(4, [], interrupt_in(1))])
    first, second = Score(4, [0.2, 0.3, 0.4], name="first"), Score(4, [0.5, 0.6, 0.7])
    run(evaluators=[first, second])
    assert scores(tmp_path, "first")[0] == (4, 0.1)
    assert first.sums == [36.0, 55.0] and second.sums == [10.0, 36.0, 55.0]


def test_another_seed_than_the_checkpoints_is_refused(run):
    run(num_steps=4)
    with pytest.raises(ValueError, match="seed must be 0, the run's own, to go on from step 4; got 1"):
        run(seed=1)


def test_data_that_are_not_needed_are_left_alone():
    class Absent(Values):
        def num_examples(self, split):
            raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        Experiment(Sum(), Absent(), 1, 1)
    Experiment(Sum(), Absent(), 1, 1, needs_data=False)


@pytest.mark.parametrize("name", ["num_steps", "batch_size", "log_every", "save_every"])
def test_counts_below_one_are_refused(name):
    settings = {"num_steps": 1, "batch_size": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Experiment(Sum(), Values(), **settings)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_that_is_no_positive_int32_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be at least 0 and below 2"):
        Experiment(Sum(), Values(), 1, 1, seed=seed)
