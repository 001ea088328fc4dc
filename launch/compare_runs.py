"""Runs beside each other, by the results that launch.evaluate has written into their directories."""
import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from vqim.evaluation.evaluated import NUMBERS, Difference, compare_evaluated, read_evaluated
from vqim.evaluation.evaluation_report import number, write_comparison

from .sample_files import SAMPLE


def is_run(path: str) -> bool:
    """Whether a path is a run's directory, or a folder of results that `launch.evaluate --out` has written."""
    return (Path(path) / "config.gin").is_file() or (Path(path) / NUMBERS).is_file()


def samples_of(path: str) -> str:
    """The folder of a run's samples; ValueError if there are none."""
    folder = Path(path) / "samples"
    if not any(SAMPLE.fullmatch(file.name) for file in folder.glob("*.png")):
        raise ValueError(f"{path} is a run without samples, which alone can be compared with a set of images: draw "
                         f"some, by python -m launch.sample --workdir={path}. Two runs are compared by their "
                         "evaluations")
    return str(folder)


def compare_runs(paths: Sequence[str], out: str | None, report: str | None) -> None:
    """Prints every measure of two or more runs and its difference from the first; writes JSON and a page if asked to.

    Raises:
      ValueError: a run has no results, or they measure nothing in common.
    """
    names = [path.rstrip("/") for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"expected different runs, got {', '.join(paths)}")
    runs = [read_evaluated(Path(path), name) for path, name in zip(paths, names, strict=True)]
    rows = [compare_evaluated(runs[0], run) for run in runs[1:]]
    for run, differences in zip(runs[1:], rows, strict=True):
        if not differences:
            raise ValueError(f"{runs[0].name} and {run.name} have measured nothing in common")
        print(f"{run.name} (step {run.step}) against {runs[0].name} (step {runs[0].step})")
        for row in differences:
            print(f"  {row.name:32} {number(row.first):>10} {number(row.second):>10}  {_change(row)}")
    if out:
        Path(out).write_text(json.dumps({
            "runs": [{"name": run.name, "step": run.step} for run in runs],
            "differences": {run.name: [_plain(row) for row in differences]
                            for run, differences in zip(runs[1:], rows, strict=True)}}, indent=2) + "\n")
    if report:
        write_comparison(report, runs, rows, [shlex.join(["python", "-m", f"{__package__}.compare", *sys.argv[1:]])])


def _change(row: Difference) -> str:
    if row.difference is None:
        return row.how
    error = f" +- {row.error:.2g}" if row.error is not None and math.isfinite(row.error) else ""
    return f"{row.difference:+.4g}{error}  ({row.how})"


def _plain(row: Difference) -> dict[str, str | float | None]:
    """A row as JSON has it."""
    found = dataclasses.asdict(row)
    if row.error is not None and not math.isfinite(row.error):
        found["error"] = None
    return found
