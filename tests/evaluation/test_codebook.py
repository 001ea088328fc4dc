"""Codebook use against closed forms and invariants, and the groups of 256 images that it is measured in."""
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


def add_in_batches(statistics, indices_N, batch_size, valid_N=None):
    """Adds images in batches, the last of which is padded with -7: no valid index, and must not be looked at."""
    valid_N = np.ones(len(indices_N), bool) if valid_N is None else valid_N
    for begin in range(0, len(indices_N), batch_size):
        batch = np.full((batch_size, *indices_N.shape[1:]), -7)
        valid_B = np.zeros(batch_size, bool)
        part = slice(begin, begin + batch_size)
        batch[:len(indices_N[part])], valid_B[:len(indices_N[part])] = indices_N[part], valid_N[part]
        batch[~valid_B] = -7
        statistics.add(batch, valid_B)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 99))
def test_statistics_do_not_depend_on_how_images_were_batched(num_images, batch_size, other_size, per_group, seed):
    rng = np.random.default_rng(seed)
    indices_NT, valid_N = rng.integers(0, 40, (num_images, 3)), rng.random(num_images) < 0.9
    valid_N[0] = True
    results = []
    for size in (batch_size, other_size):
        statistics = codebook.CodebookStatistics(40, num_images, per_group)
        add_in_batches(statistics, indices_NT, size, valid_N)
        results.append(statistics.result())
    assert results[0] == results[1]
    assert statistics.counts_K.tolist() == np.bincount(indices_NT[valid_N].ravel(), minlength=40).tolist()
    assert results[0]["usage"] == len(np.unique(indices_NT[valid_N])) / 40
    assert results[0]["entropy_bits"] == codebook.entropy_bits(statistics.counts_K)


def usage_per_batch(indices_N, num_codes, images_per_group=256, valid_N=None):
    statistics = codebook.CodebookStatistics(num_codes, len(indices_N), images_per_group)
    add_in_batches(statistics, np.asarray(indices_N)[:, None], 100, valid_N)
    return statistics.result()["usage_per_batch"]


@pytest.mark.parametrize(("num_images", "num_groups"), [(1, 1), (9, 1), (10, 1), (11, 1), (37, 3), (40, 4)])
def test_groups_are_full_and_share_no_image(num_images, num_groups):
    size = min(num_images, 10)
    # Each image with a code of its own: as many codes as images in every group.
    assert usage_per_batch(np.arange(num_images), num_images, 10) == pytest.approx(size / num_images)
    # A code that one image has: one group has it, or none, and all have the code of the others.
    shares = [usage_per_batch(np.arange(num_images) == number, 3, 10) * 3 * num_groups for number in range(num_images)]
    if num_images > 1:
        assert sorted(round(share, 6) for share in shares) == (
            [num_groups] * (num_images - size * num_groups) + [num_groups + 1] * (size * num_groups))


def test_table_4_counts_groups_of_256_images():
    # 612 images of one code each, all different: two groups of 256, and 100 images that are left out.
    assert usage_per_batch(np.arange(612), 612) == pytest.approx(256 / 612)


def test_an_image_that_is_not_valid_is_missing_from_its_group():
    assert usage_per_batch(np.arange(512), 512, valid_N=np.arange(512) != 77) == pytest.approx(511 / 512 / 2)


def test_a_set_sorted_by_class_is_measured_as_one_that_is_shuffled():
    # Ten classes with 40 of 400 codes each; 256 images know of 400 codes 1 - (1 - 1/400)^256 = 0.473 on average, of
    # one class in turn at most a tenth. The deviation of a group's share is about 0.02, and there are 20 groups.
    codes_N = np.random.default_rng(0).integers(0, 40, 5120) + np.arange(5120) // 512 * 40
    shuffled_N = np.random.default_rng(1).permutation(codes_N)
    assert [usage_per_batch(codes_N, 400), usage_per_batch(shuffled_N, 400)] == pytest.approx([0.473] * 2, abs=0.02)


def test_the_shuffle_is_the_same_on_every_machine():
    # As it came out once; another shuffle would make measurements differ that were published.
    assert usage_per_batch(np.arange(50) // 10, 5, 7) == pytest.approx(29 / 35)


def test_more_images_than_the_set_has_are_refused():
    statistics = codebook.CodebookStatistics(4, 3)
    with pytest.raises(ValueError, match="expected 3 images, got one more at place 3"):
        statistics.add(np.zeros((4, 1), int), np.ones(4, bool))


@pytest.mark.parametrize("argument", ["num_codes", "num_images", "images_per_group"])
def test_sizes_below_one_are_refused_by_name(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        codebook.CodebookStatistics(**{"num_codes": 4, "num_images": 5, argument: 0})
