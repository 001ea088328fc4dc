"""The report: what a visitor of it sees in Chromium, and what its HTML holds."""
import base64
import dataclasses
import datetime
import html.parser
import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.browser import find_browser, visit
from vqim.data.source import Emoji
from vqim.evaluation import distances
from vqim.evaluation.report import Bar, Measure, Neighbours, ProbeAccuracies, Report, write_report

in_browser = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium on PATH: apt-get install chromium, or install Google Chrome")


@pytest.fixture(name="report", scope="module")
def make_report() -> Report:
    """Real images, their thumbnails as reconstructions, and invented figures, one of which misses its bar."""
    source = Emoji("validation")
    originals = np.stack([np.asarray(source[i].image) for i in range(0, 320, 20)])[:, ::2, ::2]
    decay = np.exp(-np.arange(50) / 10)
    return Report(
        title="Sixteen emoji", summary="A summary.", machine="a laptop", date=datetime.datetime(2025, 3, 4, 5, 6),
        seconds={"Stage 1": 3600, "Stage 2": 125},
        measures=[
            Measure("Reconstruction PSNR", 21.0, "dB", {"mean image": 11.5}, [Bar("at least", 20.0)]),
            Measure("Linear probe, top-1", 61.0, "%", {"raw pixels": 63.5}, [Bar("above", 63.5, "raw pixels")], 1)],
        originals_BHWC=originals, reconstructions_BHWC=distances.downscaled_copy(originals, 2),
        image_names=[f"emoji {i}" for i in range(16)], code_counts_K=np.arange(512),
        loss_curves={"stage 1": {"total": (range(50), decay), "l2": (range(50), decay / 9)},
                     "stage 2": {"train": (range(50), 4 + decay)}, "probe": {"train": (range(50), 1 + decay)}},
        samples={name: originals[4 * i:4 * i + 4] for i, name in enumerate(("Flags", "Food & Drink"))},
        neighbours=Neighbours(originals[:4], originals[4:8], np.array([0.1, 0.2, 0.3, 0.4]), "Real ones have 0.25."),
        probe=ProbeAccuracies(range(4), [40.0, 61.0, 55.0, 50.0], 63.5),
        commands=["make quickstart"], config="train.num_steps = 50\n")


class Page(html.parser.HTMLParser):
    """The elements of a page, each as (tag, attributes), and its text."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.elements if name in attributes]


def written(tmp_path: pathlib.Path, report: Report) -> pathlib.Path:
    path = tmp_path / "report.html"
    write_report(path, report)
    return path


@in_browser
@pytest.mark.parametrize("width, dark", [(1200, False), (390, True)], ids=["desktop", "phone in the dark"])
def test_a_visitor_sees_all_images_and_no_errors(report, tmp_path, width, dark):
    seen = visit(written(tmp_path, report), tmp_path / "screenshot.png", width=width, dark=dark)
    assert seen.errors == []
    assert seen.requests == []
    assert len(seen.images) == 2 * 16 + 2 * 4 + 2 * 4
    assert all(image["width"] == image["height"] == 32 and image["shown"] > 32 and image["alt"]
               for image in seen.images)
    assert seen.overflow <= 0
    assert "1 missed" in seen.text
    background = Image.open(tmp_path / "screenshot.png").convert("L").getpixel((2, 2))
    assert background < 60 if dark else background > 200


@in_browser
def test_a_visit_notices_what_is_wrong_with_a_page(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<img src="absent.png" alt="absent"><img src="data:image/png;base64,AAAA">'
                    '<script>console.error("wrong"); nothing.at.all</script><div style="width: 3000px">wide</div>')
    seen = visit(page)
    assert [image["width"] for image in seen.images] == [0, 0]
    assert seen.requests == [(tmp_path / "absent.png").as_uri()]
    assert "wrong" in seen.errors and "Uncaught" in seen.errors
    assert seen.overflow > 1000


def test_the_page_asks_for_nothing_outside_of_itself(report, tmp_path):
    page = Page(written(tmp_path, report))
    addresses = [address for name in ("src", "href", "xlink:href") for address in page.attributes(name)]
    assert len(addresses) > 40
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not {"script", "iframe", "object"} & {tag for tag, _ in page.elements}


def test_images_are_in_the_page_pixel_by_pixel(report, tmp_path):
    page = Page(written(tmp_path, report))
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
                for source in page.attributes("src")]
    np.testing.assert_array_equal(pictures[:32:2], report.originals_BHWC)
    np.testing.assert_array_equal(pictures[1:32:2], report.reconstructions_BHWC)
    np.testing.assert_array_equal(pictures[32:40], np.concatenate(list(report.samples.values())))
    np.testing.assert_array_equal(pictures[40::2], report.neighbours.samples_BHWC)
    np.testing.assert_array_equal(pictures[41::2], report.neighbours.training_BHWC)


def test_every_image_and_chart_has_an_alternative_text(report, tmp_path):
    page = Page(written(tmp_path, report))
    texts = [attributes.get("alt") or attributes.get("aria-label") for tag, attributes in page.elements
             if tag in ("img", "svg")]
    assert len(texts) == 48 + 5
    assert all(texts) and len(set(texts)) == len(texts)


def test_ids_of_several_charts_do_not_collide(report, tmp_path):
    ids = Page(written(tmp_path, report)).attributes("id")
    assert len(ids) > 100 and len(set(ids)) == len(ids)


def test_references_within_charts_lead_to_elements(report, tmp_path):
    page = Page(written(tmp_path, report))
    references = [address[1:] for address in page.attributes("xlink:href")]
    clips = [clip.removeprefix("url(#").removesuffix(")") for clip in page.attributes("clip-path")]
    assert references and clips
    assert set(references) | set(clips) <= set(page.attributes("id"))


def test_figures_are_shown_with_baselines_bars_and_verdicts(report, tmp_path):
    text = " ".join(Page(written(tmp_path, report)).text.split())
    assert "Took1 h 2 min 5 s" in text and "By stageStage 1 1 h 0 s, Stage 2 2 min 5 s" in text
    assert "1 of 2 passed 1 missed" in text
    assert "passedat least 20.00 dB" in text
    assert "missedabove 63.5 % (raw pixels)" in text
    assert "mean image11.50" in text
    assert "511 of 512 codes occur" in text
    assert "The best is layer 1 with 61.0%" in text


def test_names_and_config_are_text_whatever_they_hold(report, tmp_path):
    hostile = '<script>alert("1")</script> & $title'
    page = Page(written(tmp_path, dataclasses.replace(
        report, title=hostile, config=hostile, image_names=[hostile] * 16, samples={hostile: report.originals_BHWC},
        loss_curves={hostile: {hostile: ([0, 1], [1, 2])}})))
    assert "script" not in {tag for tag, _ in page.elements}
    assert page.text.count(hostile) >= 20


def test_sections_without_content_are_left_out(tmp_path):
    bare = Report(title="Bare", summary="", machine="a laptop", date=datetime.datetime(2025, 1, 1), seconds={})
    page = Page(written(tmp_path, bare))
    assert not {"h2", "img", "svg", "table", "pre"} & {tag for tag, _ in page.elements}
    assert "Bare" in page.text


@pytest.mark.parametrize("kind, passing", [
    ("at least", [20.0, 21.0]), ("above", [21.0]), ("at most", [19.0, 20.0]), ("below", [19.0])])
def test_a_bar_is_passed_on_its_side_only_and_never_by_nan(kind, passing):
    assert [value for value in (19.0, 20.0, 21.0, float("nan")) if Bar(kind, 20.0).passed(value)] == passing


def test_images_that_do_not_belong_together_are_refused(report):
    with pytest.raises(ValueError, match="of one shape"):
        dataclasses.replace(report, reconstructions_BHWC=report.reconstructions_BHWC[:3])
    with pytest.raises(ValueError, match="got 2 names"):
        dataclasses.replace(report, image_names=["a", "b"])
    with pytest.raises(ValueError, match=r"samples\['Flags'\] must be uint8.*float32"):
        dataclasses.replace(report, samples={"Flags": np.zeros((1, 8, 8, 3), np.float32)})


def test_a_curve_of_unequal_lengths_is_refused_by_name(report, tmp_path):
    with pytest.raises(ValueError, match="'total' has 3 steps and 2 values"):
        written(tmp_path, dataclasses.replace(report, loss_curves={"stage 1": {"total": ([0, 1, 2], [1.0, 0.5])}}))


def test_a_report_says_how_its_figures_were_measured(tmp_path):
    write_report(tmp_path / "report.html", Report(
        "Title", "Summary", "A machine", datetime.datetime(2026, 1, 2), {"Stage 1": 3.0},
        protocols={"fwd": {"reference": "images 0123456789abcdef", "count": "369"}}))
    page = (tmp_path / "report.html").read_text()
    assert "How fwd was measured" in page and "images 0123456789abcdef" in page and "<dd>369</dd>" in page
