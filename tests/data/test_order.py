"""The order of training: known answers, permutations, shares of processes, independent random numbers."""
import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vqim.data.order import augmentation_rng, epoch_order, host_positions, shuffled, stream_key


def test_the_order_never_changes_between_versions():
    # If this fails, runs that are restarted with this code would read other data: raise the checkpoint's schema.
    assert epoch_order(10, seed=0, epoch=0).tolist() == [7, 2, 4, 9, 6, 5, 8, 1, 0, 3]
    assert epoch_order(10, seed=0, epoch=1).tolist() == [5, 4, 9, 7, 8, 2, 6, 3, 1, 0]
    assert epoch_order(10, seed=1, epoch=0).tolist() == [1, 6, 8, 0, 2, 4, 3, 5, 9, 7]


def test_augmentation_draws_never_change_between_versions():
    draws = augmentation_rng(stream_key(0, "augmentation"), epoch=2, record=5).random(3)
    np.testing.assert_allclose(draws, [0.3635586163821116, 0.3515925045885966, 0.7379307421432437], rtol=1e-12)


def test_the_order_sorts_by_philox_bits():
    key = int.from_bytes(hashlib.sha256(b"7\norder").digest()[:16], "little")
    bits = np.random.Philox(key=key, counter=3 << 192).random_raw(50).tolist()
    assert epoch_order(50, seed=7, epoch=3).tolist() == sorted(range(50), key=lambda record: bits[record])


@given(num_examples=st.integers(1, 500), seed=st.integers(0, 2**40), epoch=st.integers(0, 2**30))
def test_an_epoch_has_each_example_once(num_examples, seed, epoch):
    assert sorted(epoch_order(num_examples, seed, epoch).tolist()) == list(range(num_examples))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(epoch_order(100, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@given(
    first=st.integers(0, 10**6), batch_size=st.integers(1, 30), process_count=st.integers(1, 9),
)
def test_processes_cover_a_global_batch_without_overlap(first, batch_size, process_count):
    parts = [host_positions(first, batch_size, process, process_count) for process in range(process_count)]
    assert np.concatenate(parts).tolist() == list(range(first, first + batch_size * process_count))


@given(num_examples=st.integers(1, 60), seed=st.integers(0, 9), first=st.integers(0, 500), size=st.integers(1, 200))
def test_the_stream_is_epoch_after_epoch(num_examples, seed, first, size):
    epochs, records = shuffled(np.arange(first, first + size), num_examples, seed)
    stream = [(epoch, record) for epoch in range((first + size) // num_examples + 1)
              for record in epoch_order(num_examples, seed, epoch).tolist()]
    assert list(zip(epochs.tolist(), records.tolist(), strict=True)) == stream[first:first + size]


def test_augmentation_differs_by_seed_epoch_and_example():
    draws = {augmentation_rng(stream_key(seed, "augmentation"), epoch, record).random()
             for seed in range(3) for epoch in range(3) for record in range(3)}
    assert len(draws) == 27
