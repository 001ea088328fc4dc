"""The report's charts: matplotlib drawings as SVG elements that take their colours and fonts from the page.

K codes, L layers.
"""
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps, and one value for each step."""

# Charts are drawn in these unique colours, which are then replaced by the page's variables (different in dark mode).
_INK, _GRID = "#000001", "#000002"
_SERIES = ("#000011", "#000012", "#000013", "#000014", "#000015", "#000016")
_VARIABLES = {_INK: "--ink", _GRID: "--rule"} | {c: f"--series-{i}" for i, c in enumerate(_SERIES, start=1)}
_STYLE: Any = {  # matplotlib types the keys one by one
    "font.size": 8.5, "svg.fonttype": "none", "svg.hashsalt": "vqim",
    "text.color": _INK, "axes.edgecolor": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": _GRID, "grid.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.size": 0, "ytick.minor.size": 0,
    "legend.frameon": False, "legend.borderaxespad": 0, "legend.handlelength": 1.4, "lines.linewidth": 1.4,
}
_SIZE_INCHES = (4.6, 2.7)
_MAX_POINTS = 512


def loss_curves(curves: Mapping[str, Curve], title: str) -> str:
    """A run's losses over its steps; the scale is logarithmic if they span more than a factor of ten.

    Args:
      curves: (steps, values) by name; at most six.
      title: the alternative text.
    """
    if len(curves) > len(_SERIES):
        raise ValueError(f"a chart shows at most {len(_SERIES)} curves, got {len(curves)}: {sorted(curves)}")
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_chart()
        for color, (name, (steps, values)) in zip(_SERIES, curves.items(), strict=False):
            if len(steps) != len(values):
                raise ValueError(f"curve {name!r} has {len(steps)} steps and {len(values)} values, not as many of both")
            axes.plot(steps, values, color=color, label=name)
        everything = np.concatenate([np.asarray(values, float) for _, values in curves.values()])
        finite = everything[np.isfinite(everything)]
        if len(finite) and 0 < 10 * finite.min() < finite.max():
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        # The legend is above the plot, where it hides no curve.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3)
        return _to_svg(figure, title)


def over_settings(series: Mapping[str, tuple[Sequence[Any], Sequence[float]]], setting: str, title: str) -> str:
    """A measure over the values of a sampler's setting, one line for each combination of the other settings.

    Args:
      series: (values of the setting, values of the measure) by name; at most six. Settings that are not all numbers
        stand beside each other, in their order.
      setting: the name of the setting.
      title: the alternative text.
    """
    if len(series) > len(_SERIES):
        raise ValueError(f"a chart shows at most {len(_SERIES)} curves, got {len(series)}")
    words = list(dict.fromkeys(x for xs, _ in series.values() for x in xs))
    are_numbers = all(isinstance(x, int | float) for x in words)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_chart()
        for color, (name, (xs, values)) in zip(_SERIES, series.items(), strict=False):
            places = xs if are_numbers else [words.index(x) for x in xs]
            axes.plot(places, values, color=color, marker="o", markersize=4, label=name)
        if not are_numbers:
            axes.set_xticks(range(len(words)), [str(word) for word in words])
        axes.set_xlabel(setting)
        axes.margins(y=0.15)
        if len(series) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=2)
        return _to_svg(figure, title)


def code_frequencies(counts_K: np.ndarray, title: str) -> str:
    """Each code's share of the tokens, most frequent first, with the even share 1/K as a line.

    Both axes are logarithmic: one code, such as that of a white background, can occur a thousand times as often as
    others. Codes that never occur are left out.
    """
    shares_K = np.sort(counts_K)[::-1] / max(counts_K.sum(), 1)
    ranks = np.unique(np.geomspace(1, len(shares_K), _MAX_POINTS).astype(int)) - 1
    ranks = ranks[shares_K[ranks] > 0]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_chart()
        axes.plot(ranks + 1, 100 * shares_K[ranks], color=_SERIES[0])
        axes.axhline(100 / len(shares_K), color=_SERIES[1], linestyle=(0, (4, 2)), label="all codes alike")
        axes.set_xlabel("codes, most frequent first")
        axes.set_ylabel("share of tokens, %")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(1, len(shares_K))
        axes.legend(loc="upper right")
        return _to_svg(figure, title)


def accuracy_by_layer(layers: Sequence[int], accuracies_L: Sequence[float], baseline: float, title: str) -> str:
    """Top-1 accuracy, in percent, of a linear probe on each layer; the accuracy on raw pixels is a line."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_chart()
        axes.plot(layers, accuracies_L, color=_SERIES[0], marker="o", markersize=4, label="this run")
        axes.axhline(baseline, color=_SERIES[1], linestyle=(0, (4, 2)), label="raw pixels")
        axes.set_xlabel("layer")
        axes.set_ylabel("top-1 accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        axes.margins(y=0.15)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=2)
        return _to_svg(figure, title)


def _new_chart() -> tuple[Figure, Axes]:
    figure = Figure(_SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis="x", visible=False)
    return figure, axes


def _to_svg(figure: Figure, title: str) -> str:
    """An <svg> element for a page that may have several: without prolog, with unique ids and the page's colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    view_box = re.search(r'viewBox="[^"]+"', svg)
    assert view_box is not None
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index(">", view_box.end()) + 1:], flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", title)
    body = re.sub(r'(?<=[ \n])id="', f'id="{prefix}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", body)
    for color, variable in _VARIABLES.items():
        body = body.replace(color, f"var({variable})")
    return (f'<svg class="chart" role="img" aria-label="{html.escape(title)}" {view_box.group()} '
            f'xmlns:xlink="http://www.w3.org/1999/xlink">{body}')
