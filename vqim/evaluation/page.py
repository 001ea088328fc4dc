"""A page of results: one HTML file with its images and charts, which needs no other file, no network and no script.

    H height, W width, C channels
"""
import base64
import html
import importlib.resources
import io
import pathlib
import string
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image


def write_page(
    path: str | pathlib.Path, title: str, summary: str, facts: Mapping[str, str], sections: Sequence[str],
    num_columns: int,
) -> None:
    """Writes the HTML file.

    Args:
      path: the path of the file; its folder must exist.
      title: the title of the page, as text.
      summary: one or two sentences under the title, as text.
      facts: short facts under the summary by name, as HTML.
      sections: the rest of the page, as HTML; empty ones are left out.
      num_columns: the number of images in a row of those that stand beside a name.
    """
    template = importlib.resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    page = string.Template(template).substitute(
        title=html.escape(title), summary=html.escape(summary),
        facts="".join(f"<div><dt>{name}</dt><dd>{fact}</dd></div>" for name, fact in facts.items()),
        sections="\n".join(filter(None, sections)), sample_columns=num_columns)
    pathlib.Path(path).write_text(page, encoding="utf-8")


class Numbering:
    """Counts the figures, to number captions as in a paper."""

    def __init__(self) -> None:
        self._last = 0

    def caption(self, text: str) -> str:
        """The next figure's caption, as HTML."""
        self._last += 1
        return f"<figcaption><b>Figure {self._last}.</b> {html.escape(text)}</figcaption>"


def how_made(
    commands: Sequence[str], config: str, protocols: Mapping[str, Mapping[str, str]],
) -> str:
    """The section on how to make the results again: command lines, configuration, how each figure was measured."""
    if not commands and not config and not protocols:
        return ""
    shown = f"<pre>{html.escape(chr(10).join(commands))}</pre>" if commands else ""
    shown += (f"<details><summary>Configuration</summary><pre>{html.escape(config)}</pre></details>"
              if config else "")
    shown += "".join(
        f"<details><summary>How {html.escape(name)} was measured</summary><dl>"
        + "".join(f"<dt>{html.escape(word)}</dt><dd>{html.escape(value)}</dd>" for word, value in protocol.items())
        + "</dl></details>" for name, protocol in protocols.items())
    return f"<section><h2>How to make this again</h2>{shown}</section>"


def image_tag(image_HWC: np.ndarray, alt: str) -> str:
    """An <img> that contains its own PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG", optimize=True)
    height, width = image_HWC.shape[:2]
    return (f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}" '
            f'alt="{html.escape(alt)}" width="{width}" height="{height}">')


def duration(seconds: float) -> str:
    """Hours, minutes and seconds in words."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return " ".join(f"{value} {unit}" for value, unit in ((hours, "h"), (minutes, "min"), (seconds, "s"))
                    if value or unit == "s")


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as a clock shows them, 0:04:20."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
