"""Keys of randomness: the published hash, a bijection, and different for everything that they are made of."""
import zlib

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqim.state.random import fold_key, mix_bits, step_key

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
