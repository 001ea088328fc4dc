"""What launch.sweep writes: sweep.json with every figure, a plot of each against the value, and a page with both."""
import base64
import datetime
import html
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

SHOWN = {
    "psnr": "Reconstruction: PSNR, dB",
    "ssim": "Reconstruction: SSIM",
    "lpips_alexnet": "Reconstruction: LPIPS (AlexNet)",
    "codebook/usage": "Share of codes used",
    "bits_per_image": "Prior's validation loss, bits per image",
    "unigram_bits_per_image": "Entropy of single tokens, bits per image",
    "token_accuracy": "Share of tokens that the prior expects",
    "proxy_fid": "Samples: Frechet distance in EfficientNet-Lite0",
    "fwd": "Samples: Frechet wavelet distance",
    "judged_top1": "Samples that the judge recognises",
}
"""The measures that the table and the plot show, where runs have them."""

_PANEL_INCHES, _COLUMNS = (3.4, 2.5), 3


def summarise(measures: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """For each value and measure: the mean over seeds, its standard error and the number of seeds.

    The standard error is that of the mean, from the sample variance (n - 1); None with one seed.
    """
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for value in dict.fromkeys(row["value"] for row in measures):
        rows = [row for row in measures if row["value"] == value]
        found[value] = {}
        for name in rows[0]:
            numbers = [row[name] for row in rows if name in row]
            if name in ("value", "seed") or not numbers:
                continue
            mean, count = math.fsum(numbers) / len(numbers), len(numbers)
            squares = math.fsum((number - mean) ** 2 for number in numbers)
            error = math.sqrt(squares / (count - 1) / count) if count > 1 else None
            found[value][name] = {"mean": mean, "standard_error": error, "seeds": count}
    return found


def table(vary: str, measures: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: a row a value, means with their standard errors."""
    summary = summarise(measures)
    names = _shown(measures)
    lines = [f"| {vary} | {' | '.join(names)} |", "|" + "---|" * (len(names) + 1)]
    lines += [f"| {value} | {' | '.join(_cell(row.get(name)) for name in names)} |" for value, row in summary.items()]
    return "\n".join(lines)


def write(
    workdir: Path, vary: str, measures: Sequence[Mapping[str, Any]], commands: Sequence[str], num_points: int,
) -> None:
    """Writes sweep.json, sweep.png and sweep.html.

    Args:
      workdir: where to.
      vary: the name of what was varied.
      measures: one mapping for each value and seed, with `value`, `seed` and the measures.
      commands: those that trained the runs.
      num_points: how many values and seeds there will be; the page says so while some are missing.
    """
    about = {"date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
             "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"}
    (workdir / "sweep.json").write_text(json.dumps({
        "vary": vary, "runs": list(measures), "summary": summarise(measures), **about, "commands": list(commands)},
        indent=2) + "\n")
    _plot(vary, measures).savefig(workdir / "sweep.png", dpi=150)
    (workdir / "sweep.html").write_text(_page(workdir, vary, measures, commands, num_points, about))


def _shown(measures: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in SHOWN if any(name in row for row in measures)]


def _cell(found: Mapping[str, float | None] | None) -> str:
    if found is None:
        return "-"
    mean, error = found["mean"], found["standard_error"]
    assert mean is not None
    return f"{mean:.4g}" if error is None else f"{mean:.4g} ± {error:.2g}"


def _plot(vary: str, measures: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel a measure: each seed as a dot, means joined by a line, bars of a standard error."""
    summary, names = summarise(measures), _shown(measures)
    values = list(summary)
    try:
        places = {value: float(value) for value in values}
    except ValueError:  # names, tuples: side by side
        places = {value: float(number) for number, value in enumerate(values)}
    values.sort(key=lambda value: places[value])
    rows = -(-len(names) // _COLUMNS)
    figure = Figure(figsize=(_PANEL_INCHES[0] * _COLUMNS, _PANEL_INCHES[1] * rows), layout="constrained")
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, _COLUMNS, number)
        rows_with = [row for row in measures if name in row]
        axes.scatter([places[row["value"]] for row in rows_with], [row[name] for row in rows_with], s=12, color="0.6")
        known = [value for value in values if name in summary[value]]
        means = [summary[value][name]["mean"] or 0.0 for value in known]
        errors = [summary[value][name]["standard_error"] or 0.0 for value in known]
        axes.errorbar([places[value] for value in known], means, errors, marker="o", capsize=3)
        axes.set_title(SHOWN[name], fontsize=8)
        axes.set_xlabel(vary.rsplit(".", 1)[-1], fontsize=8)
        axes.set_xticks([places[value] for value in values], values)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    return figure


def _page(
    workdir: Path, vary: str, measures: Sequence[Mapping[str, Any]], commands: Sequence[str], num_points: int,
    about: Mapping[str, str],
) -> str:
    """A page that stands alone, with the plot in it."""
    names = _shown(measures)
    head = "".join(f"<th>{html.escape(text)}</th>" for text in (vary, *(SHOWN[name] for name in names)))
    body = "".join(
        f"<tr><td>{html.escape(value)}</td>{''.join(f'<td>{_cell(row.get(name))}</td>' for name in names)}</tr>"
        for value, row in summarise(measures).items())
    seeds = sorted({row["seed"] for row in measures})
    missing = "" if len(measures) == num_points else f" {len(measures)} of {num_points} runs are here; more to come."
    picture = base64.b64encode((workdir / "sweep.png").read_bytes()).decode()
    return (
        "<!doctype html><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{html.escape(vary)}</title>"
        "<style>body{font:15px/1.5 system-ui;margin:2rem auto;max-width:72rem;padding:0 1rem}img{max-width:100%}"
        "table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.3rem .6rem;text-align:right;"
        "border-bottom:1px solid #ccc;vertical-align:bottom}pre{overflow-x:auto;background:#f4f4f4;padding:1rem}"
        "</style>"
        f"<h1>{html.escape(vary)}</h1><p>Means over the seeds {', '.join(map(str, seeds))}, ± their standard error; "
        f"validation images.{missing} {about['date']}; {html.escape(about['machine'])}.</p>"
        f"<table><tr>{head}</tr>{body}</table><p><img alt='each measure against the value' "
        f"src='data:image/png;base64,{picture}'></p><h2>Commands</h2><pre>{html.escape(chr(10).join(commands))}</pre>\n")
