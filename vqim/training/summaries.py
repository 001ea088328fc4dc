"""What a run writes about its progress: TensorBoard events for people, and metrics.jsonl for scripts."""
import contextlib
import json
import math
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch.utils.tensorboard import SummaryWriter

from vqim.checkpoint.files import is_url, open_files
from vqim.contracts.evaluation import Curve, Histogram

METRICS_FILE = "metrics.jsonl"
_LARGE_BYTES = 1 << 20


class _Hook:
    """The hook that was there, but for TensorBoard's thread: what its disk refuses, `Summaries` tells in a sentence."""

    def __init__(self) -> None:
        self._others = threading.excepthook

    def __call__(self, args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            self._others(args)


class Summaries:
    """Writes summaries to a run directory; only the first process writes.

    Floats go to TensorBoard and to metrics.jsonl. Images, histograms, curves and text go only to TensorBoard.
    metrics.jsonl has one line for each step: {"step", "time", name: value ...}. An evaluator's line also has its
    number, as "evaluator". Lines of steps that will be made again are removed first: those of `num_steps` steps after
    `first_step`, or of all after it.

    What cannot be written, as on a full disk, is told once and never ends the run; lines of metrics.jsonl are kept and
    written when there is room again.

    An object store's objects cannot be appended to. There the files are written on this machine, and each time copied
    whole into the store; a new event file is begun when one is large, which TensorBoard reads one after the other.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], first_step: int, enabled: bool = True, num_steps: int | None = None,
    ):
        self._writer: SummaryWriter | None = None
        if enabled:
            self._copy = _Copy(str(workdir)) if is_url(workdir) else None
            directory = self._copy.folder if self._copy else Path(workdir)
            directory.mkdir(parents=True, exist_ok=True)
            self._where = str(workdir)
            self._path = directory / METRICS_FILE
            last_step = None if num_steps is None else first_step + num_steps
            has_later = _drop_lines(self._path, first_step, last_step)
            self._unwritten: list[str] = []
            self._is_failing = False
            if not isinstance(threading.excepthook, _Hook):
                threading.excepthook = _Hook()
            # TensorBoard can only forget all that is later.
            self._writer = SummaryWriter(str(directory), purge_step=None if has_later else first_step + 1)

    def write(self, step: int, values: dict[str, Any], evaluator: int | None = None) -> None:
        """Writes values of the kinds that `vqim.contracts.evaluation.Tally.result` lists; warns of a `diagnosis`.

        Args:
          step: the number of updates made.
          values: the values by name.
          evaluator: the number of the evaluator that measured them; it gets a line even if no value is a float.
        """
        if self._writer is not None:
            for name in values:
                if name.endswith("/diagnosis"):
                    logging.warning("step %d  %s: %s", step, name, values[name])
            try:
                self._add(self._writer, step, values, evaluator)
            except OSError as error:
                logging.error("Summaries of step %d cannot be written: %s. What writes them goes on.", step, error)
            self._flush()

    def _add(self, writer: SummaryWriter, step: int, values: dict[str, Any], evaluator: int | None) -> None:
        row: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        num_common = len(row)
        if evaluator is not None:
            row["evaluator"] = evaluator
        for name, value in values.items():
            if isinstance(value, Histogram):
                writer.add_histogram(name, value.values, step)
            elif isinstance(value, Curve):
                writer.add_figure(name, _plot(value), step)
                row[name] = list(value.values)
            elif isinstance(value, str):
                writer.add_text(name, value, step)
            elif isinstance(value, np.ndarray) and value.ndim == 4:
                writer.add_image(name, image_grid(value), step, dataformats="HWC")
            else:
                number = float(value)
                writer.add_scalar(name, number, step)
                row[name] = number if math.isfinite(number) else None
        if len(row) > num_common:
            self._unwritten.append(json.dumps(row) + "\n")

    def _flush(self) -> None:
        """Writes the lines and events that have not been written."""
        assert self._writer is not None
        try:
            _append(self._path, self._unwritten)
            self._unwritten.clear()
            self._writer.flush()
            if self._copy is not None:
                self._copy.publish(self._writer)
            self._is_failing = False
        except Exception as error:  # TensorBoard's thread raises what its file system raised, in its own words
            if not self._is_failing:
                logging.error("Summaries cannot be written to %s: %s. What writes them goes on.", self._where, error)
            self._is_failing = True

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._writer is not None:
            self._flush()
            with contextlib.suppress(Exception):  # it has been told
                self._writer.close()
                if self._copy is not None:
                    self._copy.publish()
            if self._copy is not None:
                self._copy.remove()


class _Copy:
    """A folder on this machine whose files are copied into an object store.

    Args:
      url: where they are copied to. Its metrics.jsonl is in the folder from the beginning.
    """

    def __init__(self, url: str) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="vqim_summaries_")
        self.folder, self._files = Path(self._temporary.name), open_files(url)
        if (lines := self._files.read(METRICS_FILE)) is not None:
            (self.folder / METRICS_FILE).write_bytes(lines)
        self._sizes: dict[str, int] = {}

    def publish(self, writer: SummaryWriter | None = None) -> None:
        """Copies the files that have grown; makes the writer begin a new file of events when its own is large."""
        for path in sorted(self.folder.iterdir()):
            size = path.stat().st_size
            if size != self._sizes.get(path.name):
                self._files.write(path.name, path.read_bytes())
                self._sizes[path.name] = size
            if path.name != METRICS_FILE and size > _LARGE_BYTES and writer is not None:
                writer.close()
                self._files.write(path.name, path.read_bytes())
                path.unlink()

    def remove(self) -> None:
        """Removes the folder."""
        self._temporary.cleanup()


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
    """The lines of a run's metrics.jsonl, in order; broken ones are left out with a warning."""
    data = open_files(workdir).read(METRICS_FILE)
    return [row for _, row in _read_lines(data or b"", f"{workdir}/{METRICS_FILE}")]


def evaluators_done(workdir: str | os.PathLike[str], step: int) -> set[int]:
    """The numbers of the evaluators that have written a line for this step."""
    return {row["evaluator"] for row in read_metrics(workdir) if row["step"] == step and "evaluator" in row}


def measured(workdir: str | os.PathLike[str], step: int) -> dict[str, float]:
    """The numbers that evaluators have written for this step."""
    rows = [row for row in read_metrics(workdir) if row["step"] == step and "evaluator" in row]
    return {name: value for row in rows for name, value in row.items()
            if isinstance(value, int | float) and name not in ("step", "time", "evaluator")}


def _drop_lines(path: Path, first_step: int, last_step: int | None) -> bool:
    """Removes the lines of steps after `first_step`, up to `last_step`; returns whether later ones are left."""
    if not path.exists():
        return False
    data = path.read_bytes()
    is_later = False
    kept = []
    for line, row in _read_lines(data, str(path)):
        is_after_last = last_step is not None and row["step"] > last_step
        if row["step"] <= first_step or is_after_last:
            kept.append(line)
        is_later |= is_after_last
    if "".join(kept).encode() != data:
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(path)
    return is_later


def _read_lines(data: bytes, where: str) -> list[tuple[str, dict[str, Any]]]:
    """The whole lines of a file, and what they say; `where` is its name for warnings."""
    found = []
    for number, line in enumerate(data.decode(errors="replace").splitlines(keepends=True), start=1):
        try:
            row = json.loads(line)
            if not line.endswith("\n") or not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("not a whole line with a step")
        except ValueError as error:
            logging.warning("%s:%d is broken and is left out: %s", where, number, error)
        else:
            found.append((line, row))
    return found


def _append(path: Path, lines: list[str]) -> None:
    """Appends lines to a file, all or nothing."""
    with path.open("ab") as file:
        size = file.tell()
        try:
            file.write("".join(lines).encode())
            file.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise
