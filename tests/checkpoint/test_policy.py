"""Which checkpoints stay."""
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqim.checkpoint.policy import KeepBest, KeepEvery, KeepHourly, KeepLatest, Saved, kept_steps


def save_one_by_one(policies, saves):
    """Steps left when retention runs after each save, as it does in training."""
    history = []
    for saved in saves:
        history.append(saved)
        kept = kept_steps(policies, history)
        history = [saved for saved in history if saved.step in kept]
    return [saved.step for saved in history]


STEPS_0_TO_6 = [Saved(step) for step in range(7)]
LOSSES = [Saved(step, {"loss": loss}) for step, loss in enumerate([5.0, 1.0, 4.0, 2.0, 3.0])]


@pytest.mark.parametrize(("policies", "expected"), [
    ((), [0, 1, 2, 3, 4, 5, 6]),
    ((KeepLatest(2),), [5, 6]),
    ((KeepLatest(2), KeepEvery(4)), [0, 4, 5, 6]),  # orbax's max_to_keep=2, keep_period=4
    ((KeepEvery(4),), [0, 4, 6]),
    ((KeepEvery(3), KeepEvery(5)), [0, 3, 5, 6]),
    ((KeepLatest(100),), [0, 1, 2, 3, 4, 5, 6]),
])
def test_steps_kept_of_0_to_6(policies, expected):
    assert save_one_by_one(policies, STEPS_0_TO_6) == expected


def test_the_first_of_each_span_of_hours_is_kept():
    minutes = [0, 50, 70, 100, 130, 190, 200]
    saves = [Saved(step, saved_at=1e9 + 60 * minute) for step, minute in enumerate(minutes)]
    assert save_one_by_one([KeepHourly(1)], saves) == [0, 2, 4, 5, 6]
    assert save_one_by_one([KeepHourly(1), KeepEvery(3)], saves) == [0, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("num", "mode", "expected"), [
    (1, "min", [1, 4]), (2, "min", [1, 3, 4]), (1, "max", [0, 4]), (2, "max", [0, 2, 4]),
])
def test_the_best_and_the_newest_are_kept(num, mode, expected):
    assert save_one_by_one([KeepBest("loss", num, mode)], LOSSES) == expected


def test_of_two_equally_good_checkpoints_the_newer_is_kept():
    saves = [Saved(1, {"loss": 2.0}), Saved(2, {"loss": 2.0}), Saved(3, {"loss": 3.0})]
    assert kept_steps([KeepBest("loss", 1, "min")], saves) == {2, 3}


def test_a_checkpoint_without_the_metric_is_never_the_best():
    saves = [Saved(1), Saved(2, {"loss": 9.0}), Saved(3, {"accuracy": 1.0}), Saved(4)]
    assert kept_steps([KeepBest("loss", 3, "min")], saves) == {2, 4}


policies_strategy = st.lists(st.one_of(
    st.builds(KeepLatest, st.integers(1, 5)), st.builds(KeepEvery, st.integers(1, 5)),
    st.builds(KeepBest, st.just("loss"), st.integers(1, 5), st.sampled_from(["min", "max"]))), min_size=1, max_size=3)
history_strategy = st.dictionaries(
    st.integers(0, 50), st.one_of(st.just({}), st.fixed_dictionaries({"loss": st.floats(-9, 9)})), min_size=1,
).map(lambda found: [Saved(step, metrics) for step, metrics in found.items()])


@given(policies_strategy, history_strategy)
def test_a_step_is_kept_if_one_policy_keeps_it_or_it_is_the_newest(policies, history):
    ordered = sorted(history, key=lambda saved: saved.step)
    wanted = {step for policy in policies for step in policy.kept(ordered)} | {ordered[-1].step}
    assert kept_steps(policies, history) == wanted <= {saved.step for saved in history}


@pytest.mark.parametrize(("build", "message"), [
    (lambda: KeepLatest(0), "num must be an integer of at least 1, got 0"),
    (lambda: KeepLatest(True), "num must be an integer of at least 1, got True"),
    (lambda: KeepEvery(-1), "steps must be an integer of at least 1, got -1"),
    (lambda: KeepEvery(1.5), "steps must be an integer of at least 1, got 1.5"),
    (lambda: KeepBest("", 1, "min"), "metric must be the name"),
    (lambda: KeepBest("loss", 1, "best"), "mode must be 'min' or 'max', got 'best'"),
    (lambda: KeepBest("loss", math.nan, "min"), "num must be an integer of at least 1, got nan"),
])
def test_a_bad_value_is_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()
