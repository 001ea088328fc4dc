"""The pages of `launch.evaluate` and of `launch.compare`: a run's figures, sweeps and images; two or more runs' beside.

    B H W images that are shown
"""
import datetime
import html
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from vqim.evaluation import charts
from vqim.evaluation.evaluated import Difference, Evaluated, PassResults
from vqim.evaluation.page import Numbering, how_made, image_tag, write_page
from vqim.evaluation.sweep import label

MAX_SERIES = 6
MAX_IMAGES = 64
"""Images of a pass that a page shows; of a point of a sweep, a quarter of them."""

COLUMNS = 8


def write_evaluation(path: str | pathlib.Path, found: Evaluated, commands: Sequence[str], config: str) -> None:
    """Writes the page of one run.

    Args:
      path: the HTML file.
      found: its results.
      commands: command lines that repeat the evaluation.
      config: its configuration.
    """
    numbered = Numbering()
    plain, sweep = ([one for one in found.passes if bool(one.settings) == swept] for swept in (False, True))
    protocols = {name: protocol for one in plain for name, protocol in one.protocols.items()} | _protocols_of(sweep)
    sections = [_figures(plain), *_sweep(sweep, numbered), _images(plain, numbered, MAX_IMAGES),
                _layers(plain, numbered), _codes(plain, numbered), how_made(commands, config, protocols)]
    summary = (f"Step {found.step:,}. A figure with a standard error is a mean over images, and the error is that of "
               "the mean; the others are of a whole set.")
    write_page(path, f"Evaluation of {found.name}", summary, _facts(len(found.passes)), sections, COLUMNS)


def write_comparison(
    path: str | pathlib.Path, runs: Sequence[Evaluated], rows: Sequence[Sequence[Difference]], commands: Sequence[str],
) -> None:
    """Writes the page of two or more runs.

    Args:
      path: the HTML file.
      runs: their results; the first is the one that the others are compared with.
      rows: for each run but the first, its differences from the first.
      commands: command lines that repeat the comparison.
    """
    numbered, sections = Numbering(), []
    for run, differences in zip(runs[1:], rows, strict=True):
        body = "".join(
            f'<tr><th scope="row">{html.escape(row.name)}</th><td>{number(row.first)}</td><td>{number(row.second)}</td>'
            f"<td>{_signed(row)}</td><td>{html.escape(row.how)}</td></tr>" for row in differences)
        sections.append(
            f"<section><h2>{html.escape(run.name)} against {html.escape(runs[0].name)}</h2>" + _table(
                ("Measure", runs[0].name, run.name, "Difference", "How"), body) + "</section>")
    for run in runs:
        sections.append(_images([one for one in run.passes if not one.settings], numbered, MAX_IMAGES // 2,
                                f" of {run.name}"))
    summary = (f"Differences are from {runs[0].name}, with their standard errors: where both runs measured the same "
               "images, of the differences image by image.")
    write_page(path, " and ".join(run.name for run in runs), summary, _facts(sum(len(run.passes) for run in runs)),
               [*sections, how_made(commands, "", {
                   f"{name} of {run.name}": protocol for run in runs for one in run.passes if not one.settings
                   for name, protocol in one.protocols.items()})], COLUMNS)


def _protocols_of(points: Sequence[PassResults]) -> dict[str, Mapping[str, str]]:
    """The protocols of a sweep's first point, and of the others what differs from these."""
    found: dict[str, Mapping[str, str]] = {}
    for one in points:
        for name, protocol in one.protocols.items():
            first = points[0].protocols.get(name, {}) if one is not points[0] else {}
            found[f"{name} at {label(one.settings)}"] = {
                word: value for word, value in protocol.items() if first.get(word) != value}
    return found


def number(value: float) -> str:
    """A figure as pages and tables show it."""
    return f"{value:.5g}"


def _signed(row: Difference) -> str:
    if row.difference is None:
        return "–"
    error = "" if row.error is None or math.isnan(row.error) else f" ± {row.error:.2g}"
    return f"{row.difference:+.4g}{error}"


def _facts(num_passes: int) -> dict[str, str]:
    return {"Finished": f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M}", "Passes": str(num_passes)}


def _table(columns: Sequence[str], body: str) -> str:
    heads = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _figures(passes: Sequence[PassResults]) -> str:
    body = ""
    for one in passes:
        errors = one.standard_errors()
        for name, value in one.numbers.items():
            error = f"± {errors[name]:.2g}" if name in errors else ""
            body += (f'<tr><th scope="row">{html.escape(name)}</th><td>{number(value)}</td><td>{error}</td>'
                     f'<td>{html.escape(one.about.get("count", ""))}</td></tr>')
    if not body:
        return ""
    columns = ("Measure", "Value", "Standard error", "Images")
    return f"<section><h2>Figures</h2>{_table(columns, body)}</section>"


def _sweep(points: Sequence[PassResults], numbered: Numbering) -> list[str]:
    """A table of all points, a chart of each measure, and the first images of each point."""
    if not points:
        return []
    names = list(dict.fromkeys(name for one in points for name in one.numbers))
    body = "".join(
        f'<tr><th scope="row">{html.escape(label(one.settings))}</th>'
        + "".join(f"<td>{number(one.numbers[name]) if name in one.numbers else '–'}</td>" for name in names) + "</tr>"
        for one in points)
    first = next(iter(points[0].settings))
    figures = "".join(f"<figure>{chart}{numbered.caption(f'{name} over {first}.')}</figure>"
                      for name in names if (chart := _chart(points, first, name)))
    images = "".join(_images([one], numbered, MAX_IMAGES // 4, f" at {label(one.settings)}", "h3") for one in points)
    return [f"<section><h2>Sweep</h2>{_table(('Settings', *names), body)}</section>",
            f'<section><h2>Over {html.escape(first)}</h2><div class="beside">{figures}</div></section>'
            if figures else "",
            f"<section><h2>Images of the sweep</h2>{images}</section>" if images else ""]


def _chart(points: Sequence[PassResults], setting: str, name: str) -> str:
    series: dict[str, tuple[list[object], list[float]]] = {}
    for one in points:
        rest = label({key: value for key, value in one.settings.items() if key != setting})
        xs, values = series.setdefault(rest or name, ([], []))
        if name in one.numbers and math.isfinite(one.numbers[name]):
            xs.append(one.settings[setting])
            values.append(one.numbers[name])
    if not any(len(xs) > 1 for xs, _ in series.values()):
        return ""
    return charts.over_settings(dict(list(series.items())[:MAX_SERIES]), setting, f"{name} over {setting}")


def _images(
    passes: Sequence[PassResults], numbered: Numbering, most: int, where: str = "", heading: str = "h2",
) -> str:
    """The images of passes, eight in a row: where there are originals, each row of these stands above its own."""
    shown = ""
    for one in passes:
        for name, images_BHWC in one.images.items():
            kept_BHWC: np.ndarray = images_BHWC[:most]
            tags = "".join(image_tag(image, f"{name} {i}") for i, image in enumerate(kept_BHWC, start=1))
            pairs = " Each row of eight originals stands above what was made of it." if one.values else ""
            more = f"The first {len(kept_BHWC)} of {len(images_BHWC)}." if len(kept_BHWC) < len(images_BHWC) else ""
            caption = numbered.caption(f"{name}{where}. {more}{pairs}".strip())
            shown += (f'<{heading}>{html.escape(name + where)}</{heading}><figure><dl class="classes"><div>'
                      f"<dt>{html.escape(one.name)}</dt><dd>{tags}</dd></div></dl>{caption}</figure>")
    return f"<section>{shown}</section>" if shown and heading == "h2" else shown


def _layers(passes: Sequence[PassResults], numbered: Numbering) -> str:
    figures = "".join(
        f"<figure>{charts.over_settings({name: (range(len(curve)), curve)}, 'layer', name)}"
        f"{numbered.caption(f'{name}.')}</figure>" for one in passes for name, curve in one.curves.items())
    return f'<section><h2>By layer</h2><div class="beside">{figures}</div></section>' if figures else ""


def _codes(passes: Sequence[PassResults], numbered: Numbering) -> str:
    figures = "".join(
        f"<figure>{charts.code_frequencies(counts_K, f'Frequency of each code, {name}')}"
        f"{numbered.caption(f'{name}: how often each code occurs.')}</figure>"
        for one in passes for name, counts_K in one.counts.items() if counts_K.sum())
    return f'<section><h2>Codes</h2><div class="beside">{figures}</div></section>' if figures else ""
