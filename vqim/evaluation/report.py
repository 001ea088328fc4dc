"""The report of a run: one HTML file with its figures, images and charts, which needs no network.

    B images, H height, W width, C channels; K codes; L layers
"""
import dataclasses
import datetime
import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from vqim.evaluation import charts, codebook, distances
from vqim.evaluation.page import Numbering, duration, how_made, image_tag, write_page


@dataclasses.dataclass(frozen=True)
class Bar:
    """A threshold for a figure, such as `Bar("at least", 20.0)` or `Bar("above", 63.1, "raw pixels")`.

    Attributes:
      kind: how the figure must compare with the threshold.
      threshold: in the figure's unit.
      reason: where the threshold comes from; may be empty.
    """

    kind: Literal["at least", "above", "at most", "below"]
    threshold: float
    reason: str = ""

    def passed(self, value: float) -> bool:
        """Whether a value reaches the bar; NaN never does."""
        return {"at least": value >= self.threshold, "above": value > self.threshold,
                "at most": value <= self.threshold, "below": value < self.threshold}[self.kind]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A headline figure, its trivial baselines, and what it has to reach.

    Attributes:
      name: what is measured.
      value: the value in this run.
      unit: written after every number: "dB", "%" (values from 0 to 100) or "bits".
      baselines: the values of trivial answers by name, in the same unit.
      bars: all bars that it has to reach; a missed bar is shown as missed.
      digits: the number of digits after the decimal point.
    """

    name: str
    value: float
    unit: str = ""
    baselines: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bars: Sequence[Bar] = ()
    digits: int = 2


@dataclasses.dataclass(frozen=True)
class ProbeAccuracies:
    """Top-1 accuracies of linear probes, in percent: on layers of a model, and on raw pixels."""

    layers: Sequence[int]
    accuracies_L: Sequence[float]
    raw_pixels: float


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Samples beside the training images nearest to them.

    Attributes:
      samples_BHWC: uint8 samples.
      training_BHWC: uint8, for each sample the nearest training image.
      distances_B: root mean square of their difference, of values in [0, 1].
      note: what the distances are to be compared with.
    """

    samples_BHWC: np.ndarray
    training_BHWC: np.ndarray
    distances_B: np.ndarray
    note: str


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of a report. Sections whose content is empty or None are left out.

    Attributes:
      title: the title of the page.
      summary: one or two sentences under the title.
      machine: what it ran on.
      date: when it ended.
      seconds: how long each stage took, by its name.
      measures: the headline figures.
      originals_BHWC: uint8 images.
      reconstructions_BHWC: uint8, the tokenizer's reconstructions of them.
      image_names: a name for each of them; used for captions and alternative texts.
      code_counts_K: how often each code occurs in the validation set's tokens.
      loss_curves: for each run (stage 1, stage 2, probe) its curves by name, each (steps, values).
      samples: uint8 generated images [B, H, W, C] by class name, not selected by hand (the caption says so).
      neighbours: some samples beside their nearest training images.
      probe: accuracies by layer.
      protocols: how figures were measured: by a figure's name, what decides it, such as network, reference and count.
      commands: command lines that repeat this run.
      config: the operative configuration.
    """

    title: str
    summary: str
    machine: str
    date: datetime.datetime
    seconds: Mapping[str, float]
    measures: Sequence[Measure] = ()
    originals_BHWC: np.ndarray | None = None
    reconstructions_BHWC: np.ndarray | None = None
    image_names: Sequence[str] = ()
    code_counts_K: np.ndarray | None = None
    loss_curves: Mapping[str, Mapping[str, charts.Curve]] = dataclasses.field(default_factory=dict)
    samples: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    neighbours: Neighbours | None = None
    probe: ProbeAccuracies | None = None
    protocols: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    commands: Sequence[str] = ()
    config: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError if images are not uint8 [B, H, W, 3] or do not match each other."""
        shapes = [images if images is None else images.shape
                  for images in (self.originals_BHWC, self.reconstructions_BHWC)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"originals and reconstructions must be of one shape, got {shapes[0]} and {shapes[1]}")
        if self.image_names and (shapes[0] is None or len(self.image_names) != shapes[0][0]):
            raise ValueError(f"image_names must have a name for each original, got {len(self.image_names)} names "
                             f"for originals of shape {shapes[0]}")
        for name, images in {"originals_BHWC": self.originals_BHWC, "reconstructions_BHWC": self.reconstructions_BHWC,
                             **{f"samples[{name!r}]": images for name, images in self.samples.items()}}.items():
            if images is not None and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3):
                raise ValueError(f"{name} must be uint8 [B, H, W, 3], got {images.dtype} {images.shape}")


def write_report(path: str | pathlib.Path, report: Report) -> None:
    """Writes the report as an HTML file that needs no other file, no network and no script.

    Args:
      path: the path of the file; its folder must exist.
      report: what to show.
    """
    numbered = Numbering()
    sections = [
        _measures(report), _reconstructions(report, numbered), _samples(report, numbered),
        _neighbours(report, numbered),
        f'<div class="beside">{_codebook(report, numbered)}{_probe(report, numbered)}</div>',
        _losses(report, numbered), how_made(report.commands, report.config, report.protocols)]
    write_page(path, report.title, report.summary, _facts(report), sections,
               max([len(images) for images in report.samples.values()], default=1))


def _facts(report: Report) -> dict[str, str]:
    facts = {"Machine": html.escape(report.machine), "Finished": f"{report.date:%Y-%m-%d %H:%M}",
             "Took": duration(sum(report.seconds.values()))}
    if len(report.seconds) > 1:
        facts["By stage"] = ", ".join(f"{html.escape(name)} {duration(one)}" for name, one in report.seconds.items())
    passed = [bar.passed(measure.value) for measure in report.measures for bar in measure.bars]
    if passed:
        missed = f' <span class="chip miss">{passed.count(False)} missed</span>' if not all(passed) else ""
        facts["Bars"] = f"{sum(passed)} of {len(passed)} passed{missed}"
    return facts


def _measures(report: Report) -> str:
    if not report.measures:
        return ""
    return ('<section><h2>Figures of this run</h2><table><thead><tr><th scope="col">Measure</th>'
            '<th scope="col">This run</th><th scope="col">Beside it</th><th scope="col">Bar</th></tr></thead>'
            f"<tbody>{''.join(map(_measure_row, report.measures))}</tbody></table></section>")


def _measure_row(measure: Measure) -> str:
    def number(value: float) -> str:
        return f"{value:,.{measure.digits}f}"

    compared = {"this run": measure.value, **measure.baselines} if measure.baselines else {}
    largest = max([value for value in compared.values() if np.isfinite(value)], default=0) or 1
    bars = "".join(
        f'<dt>{html.escape(name)}</dt><dd class="track{" own" if i == 0 else ""}" aria-hidden="true">'
        f'<i style="width: {100 * np.clip(np.nan_to_num(value) / largest, 0, 1):.1f}%"></i></dd>'
        f"<dd>{number(value)}</dd>" for i, (name, value) in enumerate(compared.items()))
    verdicts = "".join(
        f"<li>{_chip(bar.passed(measure.value))}<span>{bar.kind} {number(bar.threshold)} {html.escape(measure.unit)}"
        f"{html.escape(f' ({bar.reason})') if bar.reason else ''}</span></li>" for bar in measure.bars)
    return (f'<tr><th scope="row">{html.escape(measure.name)}</th>'
            f'<td class="value">{number(measure.value)} <small>{html.escape(measure.unit)}</small></td>'
            f'<td>{f"""<dl class="bars">{bars}</dl>""" if bars else ""}</td>'
            f'<td>{f"""<ul class="verdicts">{verdicts}</ul>""" if verdicts else ""}</td></tr>')


def _chip(passed: bool) -> str:
    return f'<span class="chip {"pass" if passed else "miss"}">{"passed" if passed else "missed"}</span>'


def _reconstructions(report: Report, numbered: Numbering) -> str:
    originals, copies = report.originals_BHWC, report.reconstructions_BHWC
    if originals is None or copies is None or not len(originals):
        return ""
    psnr_B = distances.psnr(*map(distances.unit_range, (originals, copies))).tolist()
    names = report.image_names or [f"image {i}" for i in range(1, len(originals) + 1)]
    pairs = "".join(
        f'<div class="pair">{image_tag(original, f"{name}, original")}{image_tag(copy, f"{name}, reconstruction")}'
        f"<p><span>{html.escape(name)}</span><span>{psnr:.1f} dB</span></p></div>"
        for name, original, copy, psnr in zip(names, originals, copies, psnr_B, strict=True))
    height, width = originals.shape[1:3]
    caption = numbered.caption(
        f"Originals (left of each pair) beside their reconstructions (right), {width}×{height} pixels, "
        "with the PSNR of each pair.")
    return f'<section><h2>Reconstructions</h2><figure><div class="pairs">{pairs}</div>{caption}</figure></section>'


def _samples(report: Report, numbered: Numbering) -> str:
    if not report.samples:
        return ""
    rows = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>"
        + "".join(image_tag(image, f"sample {i} of class {name}") for i, image in enumerate(images, start=1))
        + "</dd></div>" for name, images in report.samples.items())
    caption = numbered.caption("Generated images, a row for each class: the first that were drawn, none picked out.")
    return f'<section><h2>Samples by class</h2><figure><dl class="classes">{rows}</dl>{caption}</figure></section>'


def _neighbours(report: Report, numbered: Numbering) -> str:
    found = report.neighbours
    if found is None:
        return ""
    pairs = "".join(
        f'<div class="pair">{image_tag(sample, f"sample {i}")}{image_tag(image, f"its nearest training image, {i}")}'
        f"<p><span>{distance:.3f}</span></p></div>"
        for i, (sample, image, distance) in enumerate(
            zip(found.samples_BHWC, found.training_BHWC, found.distances_B, strict=True), start=1))
    caption = numbered.caption(
        f"Samples (left of each pair) beside their nearest training images (right), with the root mean square of their "
        f"difference. {found.note}")
    figure = f'<figure><div class="pairs">{pairs}</div>{caption}</figure>'
    return f"<section><h2>Nearest training images</h2>{figure}</section>"


def _codebook(report: Report, numbered: Numbering) -> str:
    counts_K = report.code_counts_K
    if counts_K is None:
        return ""
    used, bits = np.count_nonzero(counts_K), codebook.entropy_bits(counts_K)
    text = (f"How often the validation set's {counts_K.sum():,} tokens are each code. "
            f"{used:,} of {len(counts_K):,} codes occur ({codebook.usage(counts_K):.1%}); "
            f"entropy {bits:.2f} of at most {np.log2(len(counts_K)):.2f} bits, "
            f"perplexity {codebook.perplexity(counts_K):,.0f}.")
    chart = charts.code_frequencies(counts_K, "Frequency of each code, sorted")
    return f"<section><h2>Codebook</h2><figure>{chart}{numbered.caption(text)}</figure></section>"


def _probe(report: Report, numbered: Numbering) -> str:
    probe = report.probe
    if probe is None:
        return ""
    best = int(np.argmax(probe.accuracies_L))
    text = (f"Top-1 accuracy of a linear probe on the average-pooled features of each layer. The best is layer "
            f"{probe.layers[best]} with {probe.accuracies_L[best]:.1f}%; a probe on raw pixels has "
            f"{probe.raw_pixels:.1f}%.")
    chart = charts.accuracy_by_layer(probe.layers, probe.accuracies_L, probe.raw_pixels, "Probe accuracy by layer")
    return f"<section><h2>Linear probe</h2><figure>{chart}{numbered.caption(text)}</figure></section>"


def _losses(report: Report, numbered: Numbering) -> str:
    if not report.loss_curves:
        return ""
    panels = "".join(
        f"<div><h3>{html.escape(run)}</h3>{charts.loss_curves(curves, f'Loss curves, {run}')}</div>"
        for run, curves in report.loss_curves.items())
    caption = numbered.caption("Losses over the steps of each run.")
    return f'<section><h2>Training</h2><figure><div class="beside">{panels}</div>{caption}</figure></section>'
