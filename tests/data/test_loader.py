"""Loaders: which examples each process gets, exact continuation, padding, errors of readers."""
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqim.data.loader import Evaluation, Loader
from vqim.data.order import epoch_order


def read_indices(epochs_B, records_B):
    """A `ReadBatch` whose arrays are its arguments."""
    return {"epochs": epochs_B, "records": records_B + 1, "valid": np.ones(len(records_B), bool)}


def take(loader, count):
    """(epoch, record) of the next batches, flat."""
    batches = list(itertools.islice(loader, count))
    return [(epoch, record - 1) for batch in batches
            for epoch, record in zip(batch["epochs"].tolist(), batch["records"].tolist(), strict=True)]


def test_the_order_of_a_run_is_known():
    loader = Loader(read_indices, num_examples=5, batch_size=3, seed=0)
    order = [(epoch, record) for epoch in range(2) for record in epoch_order(5, 0, epoch).tolist()]
    assert order[:5] == [(0, 2), (0, 4), (0, 1), (0, 0), (0, 3)]
    assert take(loader, 3) == order[:9]


def test_every_epoch_has_each_example_once_though_batches_straddle_epochs():
    examples = take(Loader(read_indices, num_examples=7, batch_size=4, seed=3), 14)
    for epoch in range(8):
        assert sorted(examples[7 * epoch:7 * epoch + 7]) == [(epoch, record) for record in range(7)]


@settings(max_examples=25, deadline=None)
@given(
    num_examples=st.integers(1, 40), batch_size=st.integers(1, 6), process_count=st.integers(1, 5),
    seed=st.integers(0, 100),
)
def test_processes_share_each_epoch_and_together_cover_it(num_examples, batch_size, process_count, seed):
    num_batches = -(-2 * num_examples // (batch_size * process_count))
    parts = [take(Loader(read_indices, num_examples, batch_size, seed, process_index=process,
                         process_count=process_count), num_batches) for process in range(process_count)]
    together = sorted(itertools.chain(*parts))
    assert len(set(together)) == len(together)
    assert together[:2 * num_examples] == sorted(itertools.product(range(2), range(num_examples)))


def test_global_batches_do_not_depend_on_the_number_of_processes():
    alone = take(Loader(read_indices, 50, 8, seed=1), 5)
    pair = [take(Loader(read_indices, 50, 4, seed=1, process_index=process, process_count=2), 5) for process in (0, 1)]
    joined = [example for batch in range(5) for part in pair for example in part[4 * batch:4 * batch + 4]]
    assert joined == alone


@settings(max_examples=25, deadline=None)
@given(before=st.integers(0, 12), num_threads=st.integers(1, 3), batch_size=st.integers(1, 7))
def test_restoring_at_any_point_continues_as_if_nothing_happened(before, num_threads, batch_size):
    loader = Loader(read_indices, 11, batch_size, seed=5, num_threads=num_threads)
    take(loader, before)
    position = json.loads(json.dumps(loader.position()))
    expected = take(loader, 6)
    fresh = Loader(read_indices, 11, batch_size, seed=5, num_threads=num_threads)
    fresh.restore(position)
    assert take(fresh, 6) == expected
    assert fresh.position() == loader.position()


def test_a_loader_can_go_back():
    loader = Loader(read_indices, 11, 3, seed=5)
    first = take(loader, 4)
    loader.restore({**loader.position(), "next_example": 0})
    assert take(loader, 4) == first


def test_the_position_does_not_run_ahead_with_the_reading():
    loader = Loader(read_indices, 100, 5, seed=0, num_threads=2)
    assert loader.position()["next_example"] == 0
    take(loader, 3)
    assert loader.position() == {"next_example": 15, "num_examples": 100, "seed": 0}


def test_a_run_may_continue_with_other_batches_and_processes():
    loader = Loader(read_indices, 30, 4, seed=2)
    take(loader, 5)
    position, expected = loader.position(), take(loader, 6)
    parts = []
    for process in (0, 1):
        part = Loader(read_indices, 30, 6, seed=2, process_index=process, process_count=2)
        part.restore(position)
        parts.append(take(part, 2))
    assert parts[0][:6] + parts[1][:6] + parts[0][6:] + parts[1][6:] == expected


@pytest.mark.parametrize(("changed", "message"), [
    ({"num_examples": 12}, "its num_examples is 12, this loader's is 11"), ({"seed": 6}, "its seed is 6"),
])
def test_a_position_of_other_data_is_refused(changed, message):
    loader = Loader(read_indices, 11, 3, seed=5)
    with pytest.raises(ValueError, match=message):
        loader.restore({**loader.position(), **changed})


def test_an_error_of_the_reader_reaches_the_caller():
    def fail(epochs_B, records_B):
        raise FileNotFoundError("gone.jpg")

    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        next(Loader(fail, 11, 3, seed=0))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"batch_size": 0}, "batch_size: expected an integer >= 1, got 0"),
    ({"batch_size": 2.5}, "batch_size: .* got 2.5"),
    ({"seed": -1}, "seed: expected an integer >= 0, got -1"),
    ({"process_index": 2, "process_count": 2}, "process_index: .* process_count = 2, got 2"),
])
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Loader(read_indices, 10, **{"batch_size": 2, "seed": 0, **arguments})


def test_an_evaluation_has_every_example_in_order_and_pads_the_last_batch_with_zeros():
    batches = list(Evaluation(read_indices, 7, 4))
    assert [batch["records"].tolist() for batch in batches] == [[1, 2, 3, 4], [5, 6, 7, 0]]
    assert [batch["valid"].tolist() for batch in batches] == [[True] * 4, [True] * 3 + [False]]


@settings(max_examples=25, deadline=None)
@given(num_examples=st.integers(1, 40), batch_size=st.integers(1, 6), process_count=st.integers(1, 6))
def test_evaluations_of_all_processes_are_equally_long_and_cover_the_set(num_examples, batch_size, process_count):
    passes = [list(Evaluation(read_indices, num_examples, batch_size, process_index=process,
                              process_count=process_count)) for process in range(process_count)]
    assert len({len(batches) for batches in passes}) == 1
    assert {batch["records"].shape for batches in passes for batch in batches} == {(batch_size,)}
    valid = [record - 1 for batches in passes for batch in batches for record in batch["records"][batch["valid"]]]
    assert sorted(valid) == list(range(num_examples))


def test_the_length_of_an_evaluation_is_its_number_of_batches():
    for num_examples, batch_size, process_count in ((7, 4, 1), (8, 4, 1), (9, 2, 3), (1, 5, 4)):
        evaluation = Evaluation(read_indices, num_examples, batch_size, process_count=process_count)
        assert len(evaluation) == len(list(evaluation))


def test_an_evaluation_can_be_repeated_and_left_early():
    evaluation = Evaluation(read_indices, 10, 2)
    next(iter(evaluation))
    assert take(evaluation, 5) == take(evaluation, 5) == [(0, record) for record in range(10)]


def test_several_epochs_follow_each_other_without_padding_between():
    assert take(Evaluation(read_indices, 3, 4, num_epochs=2), 2)[:6] == [
        (epoch, record) for epoch in range(2) for record in range(3)]
