"""The pages of launch.evaluate and launch.compare: what they show, and that they hold together whatever is measured."""
import itertools

import numpy as np
import pytest

from vqim.evaluation.evaluated import Evaluated, PassResults, compare_evaluated
from vqim.evaluation.evaluation_report import MAX_SERIES, write_comparison, write_evaluation

from .test_report import Page

HOSTILE = '<script>alert("1")</script> & $title'


def images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def plain(shift=0.0):
    values = np.arange(30, dtype=np.float32) / 7 + np.float32(shift)
    return PassResults("reconstructions", {"count": "30"}, {"evaluation/psnr": values.mean(dtype=float), HOSTILE: 2.5},
                       values={"evaluation/psnr": values}, images={"images/reconstructions": images(100)},
                       checksums=np.arange(60, dtype=np.int32).reshape(30, 2),
                       curves={"evaluation/top1_by_layer": (0.1, 0.4, 0.3)},
                       counts={"codebook/histogram": np.array([4, 1])})


def points(temperatures, top_ks):
    return tuple(PassResults(
        "samples", {"count": "9"}, {"samples/fwd": temperature * (top_k or 9), "samples/fid": 1 / temperature},
        images={"images/samples": images(20)}, settings={"temperature": temperature, "top_k": top_k})
        for temperature, top_k in itertools.product(temperatures, top_ks))


def page_of(tmp_path, passes, name="run"):
    write_evaluation(tmp_path / "page.html", Evaluated(name, 40, passes), ["python -m launch.evaluate"], "a = 1")
    return Page(tmp_path / "page.html")


def test_a_sweep_has_a_row_a_point_a_chart_a_measure_and_images(tmp_path):
    page = page_of(tmp_path, (plain(), *points((0.5, 1.0), (4, None))))
    text = " ".join(page.text.split())
    assert "temperature 0.5, top_k none" in text and "samples/fid over temperature." in text
    assert sum(tag == "svg" for tag, _ in page.elements) == 2 + 2  # fwd and fid; layers and codes
    assert sum(tag == "img" for tag, _ in page.elements) == 64 + 4 * 16
    ids = page.attributes("id")
    assert len(set(ids)) == len(ids)


def test_both_pages_say_how_each_number_was_measured_and_what_differs_in_a_sweep(tmp_path):
    said = {"measure": "fid", "weights": "sha256 0123"}
    one = PassResults("reconstructions", {}, {"evaluation/fid": 1.0}, {"protocol/fid": said})
    swept = tuple(PassResults(
        "samples", {}, {"samples/fid": 1.0}, {"samples/protocol/fid": {**said, "sampler": sampler}},
        settings={"top_k": top_k}) for sampler, top_k in (("of one", 1), ("of two", 2)))
    text = " ".join(page_of(tmp_path, (one, *swept)).text.split())
    assert "How protocol/fid was measured" in text and "How samples/protocol/fid at top_k 2 was measured" in text
    assert "of one" in text and "of two" in text and text.count("sha256 0123") == 2
    runs = [Evaluated("a", 1, (one,)), Evaluated("b", 1, (one,))]
    write_comparison(tmp_path / "both.html", runs, [compare_evaluated(*runs)], [])
    both = " ".join(Page(tmp_path / "both.html").text.split())
    assert "How protocol/fid of a was measured" in both and "How protocol/fid of b was measured" in both


def test_a_sweep_over_words_and_one_of_many_lines_have_charts(tmp_path):
    words = tuple(PassResults("samples", {}, {"samples/fwd": value}, settings={"order": order})
                  for order, value in (("halton", 1.0), ("confidence", 2.0)))
    assert sum(tag == "svg" for tag, _ in page_of(tmp_path, words).elements) == 1
    many = page_of(tmp_path, points((0.5, 1.0), range(1, MAX_SERIES + 4)))
    assert sum(tag == "svg" for tag, _ in many.elements) == 2


@pytest.mark.parametrize("passes", [
    (PassResults("samples", {}, {}, settings={"temperature": 0.5}),),
    (PassResults("samples", {}, {"samples/fwd": float("nan")}, settings={"temperature": 0.5}),),
    (PassResults("reconstructions", {}, {}),),
], ids=["nothing measured", "one point that is not finite", "no numbers"])
def test_a_page_of_next_to_nothing_has_no_chart(tmp_path, passes):
    assert "svg" not in {tag for tag, _ in page_of(tmp_path, passes).elements}


def test_names_on_the_pages_are_text_whatever_they_hold(tmp_path):
    page = page_of(tmp_path, (plain(), *points((0.5, 1.0), (1,))), HOSTILE)
    assert "script" not in {tag for tag, _ in page.elements} and page.text.count(HOSTILE) >= 2
    runs = [Evaluated(HOSTILE, 40, (plain(),)), Evaluated("other", 40, (plain(0.5),))]
    write_comparison(tmp_path / "both.html", runs, [compare_evaluated(*runs)], [])
    both = Page(tmp_path / "both.html")
    assert "script" not in {tag for tag, _ in both.elements}
    assert "+0.5 ± " in both.text and "paired over 30 images" in both.text and "of the whole set" in both.text
