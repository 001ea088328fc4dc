"""What a run writes about its progress: TensorBoard events for people, and metrics.jsonl for scripts."""
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch.utils.tensorboard import SummaryWriter

from vqim.contracts.evaluation import Curve, Histogram


class Summaries:
    """Writes summaries to a run directory; only the first process writes.

    Floats go to TensorBoard and to metrics.jsonl. Images, histograms, curves and text go only to TensorBoard.
    metrics.jsonl has one line for each step: {"step", "time", name: value ...}. An evaluator's line also has its
    number, as "evaluator". A resumed run first removes the lines of steps that it will make again.
    """

    def __init__(self, workdir: str | os.PathLike[str], first_step: int, enabled: bool = True):
        self._writer: SummaryWriter | None = None
        if enabled:
            directory = Path(workdir)
            directory.mkdir(parents=True, exist_ok=True)
            self._path = directory / "metrics.jsonl"
            _drop_later_lines(self._path, first_step)
            self._writer = SummaryWriter(str(directory), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, Any], evaluator: int | None = None) -> None:
        """Writes values of the kinds that `vqim.contracts.evaluation.Tally.result` lists.

        Args:
          step: the number of updates made.
          values: the values by name.
          evaluator: the number of the evaluator that measured them; it gets a line even if no value is a float.
        """
        if self._writer is None:
            return
        row: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        num_common = len(row)
        if evaluator is not None:
            row["evaluator"] = evaluator
        for name, value in values.items():
            if isinstance(value, Histogram):
                self._writer.add_histogram(name, value.values, step)
            elif isinstance(value, Curve):
                self._writer.add_figure(name, _plot(value), step)
                row[name] = list(value.values)
            elif isinstance(value, str):
                self._writer.add_text(name, value, step)
            elif isinstance(value, np.ndarray) and value.ndim == 4:
                self._writer.add_image(name, image_grid(value), step, dataformats="HWC")
            else:
                number = float(value)
                self._writer.add_scalar(name, number, step)
                row[name] = number if math.isfinite(number) else None
        if len(row) > num_common:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._writer is not None:
            self._writer.close()


def image_grid(images_BHWC: np.ndarray, padding: int = 2) -> np.ndarray:
    """One image [rows * (H + padding), columns * (W + padding), C]: up to eight columns, light grey in between."""
    columns = min(8, len(images_BHWC))
    missing = -len(images_BHWC) % columns
    filled = np.concatenate([images_BHWC, np.full((missing, *images_BHWC.shape[1:]), 230, np.uint8)])
    padded = np.pad(filled, ((0, 0), (0, padding), (0, padding), (0, 0)), constant_values=230)
    return rearrange(padded, "(r c) h w d -> (r h) (c w) d", c=columns)


def _plot(curve: Curve) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.values, marker="o")
    axes.set_xlabel(curve.title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    return figure


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, in order."""
    path = Path(workdir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def evaluators_done(workdir: str | os.PathLike[str], step: int) -> set[int]:
    """The numbers of the evaluators that have written a line for this step."""
    return {row["evaluator"] for row in read_metrics(workdir) if row["step"] == step and "evaluator" in row}


def _drop_later_lines(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last_step]
    if kept != lines:
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(path)
