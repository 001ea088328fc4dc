"""What `launch.evaluate` found of a run, and how two runs differ in it.

    N images of a pass, B H W images that are shown
"""
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vqim.evaluation.protocol import differences

NUMBERS, ARRAYS = "evaluation.json", "evaluation.npz"


@dataclasses.dataclass(frozen=True)
class PassResults:
    """The results of one pass.

    Attributes:
      name: the pass, such as 'reconstructions'.
      about: what decides the results besides the metrics, and their count (`vqim.contracts.evaluation.About`).
      numbers: by their names in the summaries.
      protocols: how distances of sets were measured, by names such as 'protocol/fid'.
      values: every image's value, [N] by the name of the number that is their mean.
      checksums: which images these are of, int32 [N, 2]; None where they are of none.
      images: uint8 [B, H, W, 3] to look at, by name.
      curves: such as accuracies by layer.
      counts: how often each code occurs, by the codebook's name.
      settings: the point of a sweep; {} outside of a sweep.
    """

    name: str
    about: Mapping[str, str]
    numbers: Mapping[str, float]
    protocols: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    values: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    checksums: np.ndarray | None = None
    images: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    counts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def standard_errors(self) -> dict[str, float]:
        """Of the numbers that are means over images."""
        return {name: standard_error(values_N) for name, values_N in self.values.items() if len(values_N) > 1}


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A run's results at a step, those of a sweep among them."""

    name: str
    step: int
    passes: tuple[PassResults, ...]

    def plain(self) -> dict[str, PassResults]:
        """The pass of each number that is of no sweep."""
        return {name: one for one in self.passes if not one.settings for name in one.numbers}


def standard_error(values_N: np.ndarray) -> float:
    """Of the mean of independent values; NaN for fewer than two."""
    if len(values_N) < 2:
        return math.nan
    return float(values_N.std(ddof=1, dtype=np.float64) / math.sqrt(len(values_N)))


def write_evaluated(folder: Path, found: Evaluated) -> None:
    """Writes evaluation.json for people and scripts, and evaluation.npz with values and images."""
    plain = [one for one in found.passes if not one.settings]
    document: dict[str, Any] = {"step": found.step}
    for one in plain:
        document |= {**one.numbers, **one.protocols}
    document["standard_errors"] = {name: value for one in plain for name, value in one.standard_errors().items()}
    document["passes"] = [{"name": one.name, "about": dict(one.about), "results": list(one.numbers)} for one in plain]
    document["curves"] = {name: list(values) for one in plain for name, values in one.curves.items()}
    sweep = [one for one in found.passes if one.settings]
    if sweep:
        document["sweep"] = [{"settings": dict(one.settings), "name": one.name, "about": dict(one.about),
                              "results": {**one.numbers, **one.protocols}} for one in sweep]
    arrays: dict[str, np.ndarray] = {}
    for number, one in enumerate([*plain, *sweep]):
        for kind in ("values", "images", "counts"):
            arrays |= {f"{number}/{kind}/{name}": array for name, array in getattr(one, kind).items()}
        if one.checksums is not None:
            arrays[f"{number}/checksums"] = one.checksums
    temporary = folder / "evaluation.tmp"
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    temporary.replace(folder / ARRAYS)
    temporary.write_text(json.dumps(document, indent=2) + "\n")
    temporary.replace(folder / NUMBERS)


def read_evaluated(folder: Path, name: str) -> Evaluated:
    """What `write_evaluated` wrote; ValueError if it is not there, or of an older version."""
    try:
        document = json.loads((folder / NUMBERS).read_text())
        with np.load(folder / ARRAYS, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        described, sweep = document["passes"], document.get("sweep", [])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no results of launch.evaluate ({NUMBERS} and {ARRAYS}): measure the run "
                         f"first, by python -m launch.evaluate --workdir={folder}") from error
    passes = []
    for number, one in enumerate([*described, *sweep]):
        results = one["results"] if "settings" in one else {key: document[key] for key in one["results"]}
        section = results if "settings" in one else document

        def part(kind: str, number: int = number) -> dict[str, np.ndarray]:
            begin = f"{number}/{kind}/"
            return {key[len(begin):]: array for key, array in arrays.items() if key.startswith(begin)}

        passes.append(PassResults(
            one["name"], one["about"], {key: value for key, value in results.items() if not isinstance(value, dict)},
            {key: value for key, value in section.items() if "protocol/" in key
             and set(measures_of(key, value)) & results.keys()},
            part("values"), arrays.get(f"{number}/checksums"), part("images"), {}, part("counts"),
            one.get("settings", {})))
    return Evaluated(name, document["step"], tuple(passes))


def measures_of(name: str, protocol: Mapping[str, str]) -> list[str]:
    """The names, in the summaries, of the numbers that a protocol is of."""
    section = name.rpartition("protocol/")[0]
    # A name with a part of its own, such as codebook/usage, has no section of the plain passes.
    return [(section or "evaluation/" * ("/" not in measure)) + measure
            for measure in protocol.get("measure", "").split(", ")]


@dataclasses.dataclass(frozen=True)
class Difference:
    """One number of two runs.

    Attributes:
      name: its name in the summaries.
      first, second: the two values.
      difference: second - first; over the images that both measured, where it is paired. None if they cannot be
        compared.
      error: its standard error; None where the number is no mean over images.
      how: how the error was found, or why the numbers cannot be compared.
    """

    name: str
    first: float
    second: float
    difference: float | None
    error: float | None
    how: str


def compare_evaluated(first: Evaluated, second: Evaluated) -> list[Difference]:
    """Every number that both have, outside of sweeps."""
    ones, others = first.plain(), second.plain()
    return [_difference(name, ones[name], others[name]) for name in ones if name in others]


def _difference(name: str, one: PassResults, other: PassResults) -> Difference:
    a, b = one.numbers[name], other.numbers[name]
    values = one.values.get(name), other.values.get(name)
    is_mean = values[0] is not None and values[1] is not None
    # A mean over images is compared image by image; what is of a whole set needs sets of one size.
    reasons = [reason for reason in differences(_said(name, one), _said(name, other))
               if not (is_mean and reason.startswith(("count:", "subset:")))]
    if reasons:
        return Difference(name, a, b, None, None, f"not comparable: {'; '.join(reasons)}")
    if values[0] is None or values[1] is None:
        return Difference(name, a, b, b - a, None, "of the whole set")
    rows_a, rows_b = common(one.checksums, other.checksums)
    if len(rows_a) > 1:
        gaps_N = values[1][rows_b].astype(np.float64) - values[0][rows_a]
        return Difference(name, a, b, float(gaps_N.mean()), standard_error(gaps_N),
                          f"paired over {len(rows_a)} images")
    return Difference(name, a, b, b - a, math.hypot(standard_error(values[0]), standard_error(values[1])),
                      f"not paired: {len(values[0])} and {len(values[1])} other images")


def _said(name: str, one: PassResults) -> dict[str, str]:
    """All that is known of how a number was measured."""
    said = dict(one.about)
    for key, protocol in one.protocols.items():
        if name in measures_of(key, protocol):
            said |= {**protocol, "measure": name}  # whatever else was measured with it
    return said


def common(one_N2: np.ndarray | None, other_N2: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the images that both have; equal images are paired in their order."""
    if one_N2 is None or other_N2 is None:
        return np.zeros(0, int), np.zeros(0, int)
    places: dict[tuple[int, ...], list[int]] = {}
    for row, checksum in enumerate(other_N2.tolist()):
        places.setdefault(tuple(checksum), []).append(row)
    for rows in places.values():
        rows.reverse()
    pairs = [(row, places[key].pop()) for row, checksum in enumerate(one_N2.tolist())
             if places.get(key := tuple(checksum))]
    rows_a, rows_b = np.array(pairs, int).reshape(-1, 2).T
    return rows_a, rows_b
