"""Keys of randomness: the published hash, a bijection, different for all that they are made of; rows of draws."""
import itertools
import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqim.state.random import fold_key, mix_bits, step_key, uniform_rows

INT32 = st.integers(-2**31, 2**31 - 1)


def lowbias32(x):
    """Chris Wellons' function as he prints it, on Python's integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def reference_mix(x):
    mixed = lowbias32((x + 0x3C6EF372) % 2**32)
    return (mixed + 2**31) % 2**32 - 2**31


def inverse_mix(y):
    """Undoes `reference_mix`, step by step."""
    x = y % 2**32
    x ^= x >> 16
    x = x * pow(0x846CA68B, -1, 2**32) % 2**32
    x ^= x >> 15 ^ x >> 30
    x = x * pow(0x7FEB352D, -1, 2**32) % 2**32
    x ^= x >> 16
    return (x - 0x3C6EF372 + 2**31) % 2**32 - 2**31


def int32(value):
    return torch.tensor(value, dtype=torch.int32)


@given(INT32)
def test_mix_bits_is_lowbias32(x):
    assert mix_bits(int32(x)).item() == reference_mix(x)


@given(INT32)
def test_mix_bits_has_an_inverse(x):
    assert inverse_mix(mix_bits(int32(x)).item()) == x


def test_mix_bits_stays_int32():
    assert mix_bits(int32([0, -1, 2**31 - 1])).dtype == torch.int32


def test_a_flipped_bit_of_the_key_flips_half_of_the_bits():
    x = torch.from_numpy(np.random.default_rng(0).integers(-2**31, 2**31, 2000, np.int32))
    for bit in range(32):
        flipped = mix_bits(x) ^ mix_bits(x ^ int32((1 << bit) - (2**32 if bit == 31 else 0)))
        share = np.unpackbits(flipped.numpy().view(np.uint8)).mean()
        assert abs(share - 0.5) < 0.02


@given(INT32, INT32)
def test_fold_key_mixes_the_key_then_what_is_folded_in(key, data):
    expected = reference_mix(reference_mix(key) ^ data)
    assert fold_key(int32(key), data).item() == fold_key(int32(key), int32(data)).item() == expected


def test_words_enter_by_their_crc():
    crc = zlib.crc32(b"attention")
    signed = crc - 2**32 if crc >= 2**31 else crc
    assert fold_key(int32(3), "attention").item() == fold_key(int32(3), signed).item()


def test_folding_in_another_order_gives_another_key():
    assert fold_key(fold_key(int32(0), 1), 2).item() != fold_key(fold_key(int32(0), 2), 1).item()


def test_keys_of_seeds_steps_purposes_and_layers_are_all_different():
    layers, steps = torch.arange(12, dtype=torch.int32), torch.arange(40, dtype=torch.int32)[:, None]
    keys = torch.cat([fold_key(fold_key(step_key(int32(seed), steps, purpose), part), layers).flatten()
                      for seed in (-1, 0, 1) for purpose in ("tokenizer", "prior", "sample")
                      for part in ("attention", "activation")])
    # 8,640 keys of 2^32: a hash that scatters has a pair of equal ones with probability 0.009.
    assert len(keys.unique()) == len(keys) == 8640


def test_a_step_has_the_same_key_whenever_it_is_made():
    assert step_key(int32(5), int32(100), "prior").item() == reference_mix(
        reference_mix(reference_mix(reference_mix(5) ^ (zlib.crc32(b"prior") + 2**31) % 2**32 - 2**31)) ^ 100)


def numpy_mix(x):
    """`reference_mix` of int32 arrays, whose products wrap in NumPy as they do in C."""
    def shifted(bits, count):  # of all 32 bits, without their sign
        return (bits.view(np.uint32) >> np.uint32(count)).view(np.int32)

    x = np.atleast_1d(x).astype(np.int32) + np.int32(0x3C6EF372)
    x = (x ^ shifted(x, 16)) * np.int32(0x7FEB352D)
    x = (x ^ shifted(x, 15)) * np.int32(0x846CA68B - 2**32)
    return x ^ shifted(x, 16)


def draw_rows(num_rows, num_columns, seed=0):
    """Rows as a sampler draws them: those of images 0, 1, 2 ... of a seed."""
    return uniform_rows(fold_key(int32(seed), torch.arange(num_rows, dtype=torch.int32)), num_columns).numpy()


@given(st.lists(INT32, min_size=1, max_size=5), st.integers(1, 40))
def test_rows_are_24_bits_of_the_keys_and_columns_mixed(keys, num_columns):
    bits = numpy_mix(numpy_mix(np.array(keys))[:, None] ^ numpy_mix(np.arange(num_columns)))
    expected = (bits & np.int32(0x7FFFFFFF)) // 128 / 2**24
    found = uniform_rows(int32(keys), num_columns)
    assert found.dtype == torch.float32 and found.shape == (len(keys), num_columns)
    np.testing.assert_array_equal(found.double(), expected)


def test_rows_reach_from_zero_to_just_below_one():
    draws = draw_rows(1000, 1000)
    assert 0 <= draws.min() < 1e-5 and 1 - 1e-5 < draws.max() < 1
    assert (draws * 2**24 % 1 == 0).all()


def test_a_row_depends_on_its_own_key_and_is_longer_with_more_columns():
    keys = int32([5, -3, 2**31 - 1])
    rows = uniform_rows(keys, 100)
    for key, row in zip(keys, rows, strict=True):
        assert torch.equal(uniform_rows(key[None], 70)[0], row[:70])


def test_rows_of_different_keys_have_nothing_in_common():
    draws = draw_rows(40, 2000)
    correlation = np.corrcoef(draws) - np.eye(40)
    assert np.abs(correlation).max() < 5.5 / math.sqrt(2000)
    # 2000 x 2000 pairs of 2^24 values: two rows share 0.24 by chance.
    shared = [len(np.intersect1d(a, b)) for a, b in itertools.combinations(draws, 2)]
    assert max(shared) <= 6 and np.mean(shared) < 0.5


@pytest.mark.parametrize("axis", [0, 1], ids=["of one column", "of one row"])
def test_draws_fill_the_unit_interval_evenly(axis):
    draws = np.take(draw_rows(200_000 if axis == 0 else 1, 1 if axis == 0 else 200_000), 0, 1 - axis)
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    assert counts.sum() == 200_000
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 50  # chi-square, 19 degrees of freedom: p = 1e-4
