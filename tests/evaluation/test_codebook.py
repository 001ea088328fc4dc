"""Codebook use against closed forms, invariants, and a plain regrouping into batches of 256 images."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqim.evaluation import codebook


def test_a_uniform_distribution_uses_everything_evenly():
    counts_K = np.full(512, 7)
    assert codebook.usage(counts_K) == 1.0
    assert codebook.entropy_bits(counts_K) == pytest.approx(9.0)
    assert codebook.perplexity(counts_K) == pytest.approx(512.0)


def test_a_collapsed_codebook_has_one_code_and_no_information():
    counts_K = np.array([0, 0, 1000, 0])
    assert codebook.usage(counts_K) == 0.25
    assert codebook.entropy_bits(counts_K) == 0.0
    assert codebook.perplexity(counts_K) == 1.0


def test_the_entropy_of_a_half_and_two_quarters_is_one_and_a_half_bits():
    assert codebook.entropy_bits(np.array([2, 1, 0, 1])) == pytest.approx(1.5)


def test_counts_are_those_of_a_loop():
    indices_BN = np.random.default_rng(0).integers(0, 10, (6, 5))
    expected = [sum(int(i) == code for i in indices_BN.ravel()) for code in range(12)]
    assert codebook.count_codes(indices_BN, 12).tolist() == expected


@pytest.mark.parametrize("index", [-1, 12])
def test_an_index_outside_of_the_codebook_is_refused(index):
    with pytest.raises(ValueError, match="from 0 to 11"):
        codebook.count_codes(np.array([0, index]), 12)


def test_counts_of_zero_have_no_entropy():
    with pytest.raises(ValueError, match="all counts are zero"):
        codebook.entropy_bits(np.zeros(4, int))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40).filter(any))
def test_perplexity_lies_between_one_and_the_number_of_used_codes(counts):
    counts_K = np.array(counts)
    assert 1 - 1e-9 <= codebook.perplexity(counts_K) <= np.count_nonzero(counts_K) * (1 + 1e-9)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 12))
def test_statistics_do_not_depend_on_how_images_were_batched(num_images, batch_size, images_per_group):
    num_codes, padding = 40, -7  # padding is no valid index, and must not be looked at
    indices_NT = np.random.default_rng(num_images).integers(0, num_codes, (num_images, 3))
    statistics = codebook.CodebookStatistics(num_codes, images_per_group)
    for begin in range(0, num_images, batch_size):
        part = indices_NT[begin:begin + batch_size]
        batch = np.full((batch_size, 3), padding)
        batch[:len(part)] = part
        statistics.add(batch, np.arange(batch_size) < len(part))

    groups = [indices_NT[i:i + images_per_group] for i in range(0, num_images, images_per_group)]
    whole = [group for group in groups if len(group) == images_per_group] or groups
    result = statistics.result()
    assert result["usage"] == len(np.unique(indices_NT)) / num_codes
    assert result["usage_per_batch"] == pytest.approx(np.mean([len(np.unique(g)) / num_codes for g in whole]))
    assert result["entropy_bits"] == pytest.approx(codebook.entropy_bits(statistics.counts_K))
    assert statistics.counts_K.sum() == indices_NT.size


def test_table_4_counts_groups_of_256_images():
    # 512 images of one token: the first 256 use 10 codes, the others 30 of 100; another 100 images are left out.
    indices_N = np.concatenate([np.arange(256) % 10, np.arange(256) % 30, np.arange(100)])
    statistics = codebook.CodebookStatistics(100)
    statistics.add(indices_N[:, None], np.ones(612, bool))
    assert statistics.result()["usage_per_batch"] == pytest.approx((0.1 + 0.3) / 2)
    assert statistics.result()["usage"] == 1.0


@pytest.mark.parametrize("argument", ["num_codes", "images_per_group"])
def test_sizes_below_one_are_refused_by_name(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        codebook.CodebookStatistics(**{"num_codes": 4, argument: 0})
