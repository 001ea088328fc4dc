"""Results of runs: written, read again, and compared image by image where both measured the same."""
import dataclasses

import numpy as np
import pytest
import scipy.stats

from vqim.evaluation.evaluated import (
    Evaluated,
    PassResults,
    common,
    compare_evaluated,
    read_evaluated,
    standard_error,
    write_evaluated,
)

ABOUT = {"count": "40", "split": "validation", "image size": "16x16", "crop": "CenterCrop()"}


def run_of(psnr_N, checksums_N2=None, about=ABOUT, fid=3.0, **protocol):
    """A run with one mean over images and one measure of the set."""
    said = {"measure": "fid", "weights": "sha256 1", "reference": "images 2", "count": about["count"], **protocol}
    return Evaluated("a", 7, (PassResults(
        "reconstructions", about, {"evaluation/psnr": psnr_N.mean(dtype=float), "evaluation/fid": fid},
        {"protocol/fid": said}, {"evaluation/psnr": psnr_N}, checksums_N2,
        {"images/x": np.zeros((2, 4, 4, 3), np.uint8)},
        {"evaluation/top1_by_layer": (0.1, 0.2)}, {"codebook/histogram": np.array([3, 1])}),))


def draws(seed, count=40):
    return np.random.default_rng(seed).normal(20, 3, count).astype(np.float32)


def numbered(*numbers):
    return np.array([[number, number % 7] for number in numbers], np.int32)


def test_a_difference_over_the_same_images_has_the_error_of_a_paired_test():
    a = draws(0)
    b = a + draws(1) / 100
    psnr, fid = compare_evaluated(run_of(a, numbered(*range(40))), run_of(b, numbered(*range(40)), fid=2.0))
    expected = scipy.stats.ttest_rel(b.astype(np.float64), a.astype(np.float64))
    assert psnr.difference / psnr.error == pytest.approx(expected.statistic, rel=1e-9)
    assert psnr.how == "paired over 40 images"
    assert (fid.difference, fid.error, fid.how) == (-1.0, None, "of the whole set")


def test_a_difference_over_other_images_has_the_error_of_welchs_test():
    a, b = draws(0), draws(1, 25)
    one, other = run_of(a, numbered(*range(40))), run_of(b, numbered(*range(100, 125)))
    psnr = compare_evaluated(one, other)[0]
    expected = scipy.stats.ttest_ind(b.astype(np.float64), a.astype(np.float64), equal_var=False)
    assert psnr.difference / psnr.error == pytest.approx(expected.statistic, rel=1e-6)
    assert psnr.how == "not paired: 40 and 25 other images"


def test_images_are_paired_by_what_they_are_in_any_order_and_equal_ones_once():
    one, other = numbered(5, 3, 3, 9, 4), numbered(3, 8, 4, 5, 3, 3)
    rows_a, rows_b = common(one, other)
    assert list(zip(rows_a.tolist(), rows_b.tolist(), strict=True)) == [(0, 3), (1, 0), (2, 4), (4, 2)]
    assert len(common(one, None)[0]) == len(common(numbered(), other)[0]) == 0


def test_only_images_that_both_measured_count_in_a_paired_difference():
    a, b = draws(0), draws(1)
    one, other = run_of(a, numbered(*range(40))), run_of(b, numbered(*range(30, 70)))
    psnr = compare_evaluated(one, other)[0]
    assert psnr.difference == pytest.approx((b[:10].astype(float) - a[30:]).mean(), rel=1e-6)
    assert psnr.how == "paired over 10 images"


@pytest.mark.parametrize("other, names", [
    (run_of(draws(0), about={**ABOUT, "image size": "32x32"}), {"evaluation/psnr", "evaluation/fid"}),
    (run_of(draws(0), about={**ABOUT, "split": "train"}), {"evaluation/psnr", "evaluation/fid"}),
    (run_of(draws(0), weights="sha256 9"), {"evaluation/fid"}),
    (run_of(draws(0), about={**ABOUT, "count": "41"}), {"evaluation/fid"}),
])
def test_what_was_measured_otherwise_is_not_compared(other, names):
    refused = {row.name for row in compare_evaluated(run_of(draws(0)), other) if row.difference is None}
    assert refused == names


@pytest.mark.parametrize("other", [
    run_of(draws(0), measure="fid, kid"),
    run_of(draws(0), numbered(*range(40)), about={**ABOUT, "count": "41", "subset": "41 of 90 images"}),
])
def test_means_are_compared_whatever_else_was_measured_and_on_which_part(other):
    rows = {row.name: row for row in compare_evaluated(run_of(draws(0), numbered(*range(40))), other)}
    assert rows["evaluation/psnr"].difference == pytest.approx(0, abs=1e-6)
    assert (rows["evaluation/fid"].difference is None) == ("subset" in other.passes[0].about)


def test_results_are_read_as_they_were_written(tmp_path):
    plain = run_of(draws(0), numbered(*range(40)))
    point = dataclasses.replace(plain.passes[0], settings={"temperature": 0.5, "top_k": None}, curves={})
    write_evaluated(tmp_path, Evaluated("a", 7, (*plain.passes, point)))
    found = read_evaluated(tmp_path, "b")
    assert (found.name, found.step, len(found.passes)) == ("b", 7, 2)
    for one, expected in zip(found.passes, (plain.passes[0], point), strict=True):
        assert (one.name, one.about, one.numbers, one.protocols, one.settings) == (
            expected.name, expected.about, expected.numbers, expected.protocols, expected.settings)
        np.testing.assert_array_equal(one.values["evaluation/psnr"], expected.values["evaluation/psnr"])
        np.testing.assert_array_equal(one.checksums, expected.checksums)
        np.testing.assert_array_equal(one.counts["codebook/histogram"], [3, 1])
        assert one.images["images/x"].shape == (2, 4, 4, 3)


def test_a_folder_without_results_says_how_to_make_them(tmp_path):
    with pytest.raises(ValueError, match=r"measure the run first, by python -m launch\.evaluate --workdir="):
        read_evaluated(tmp_path, "a")


def test_one_image_has_no_standard_error():
    assert np.isnan(standard_error(np.ones(1, np.float32)))
    assert run_of(draws(0, 1)).passes[0].standard_errors() == {}
