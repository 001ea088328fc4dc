"""How the time of a case grows with the batch, the tokens of an image, or the codes, as exponents."""
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vqim.contracts.runtime import Runtime

from .benchmark_cases import Case, Size
from .benchmark_timing import measure

VALUES = {"batch": (1, 4, 16, 64), "tokens": (64, 256, 1024), "codes": (512, 2048, 8192, 16384)}
"""What is varied, and its values."""


def resized(size: Size, along: str, value: int) -> Size:
    """A size with another batch, other images of so many tokens, or so many codes."""
    if along == "tokens":
        return dataclasses.replace(size, image_size=math.isqrt(value) * size.patch_size)
    if along == "batch":
        return dataclasses.replace(size, batch_size=value)
    return dataclasses.replace(size, vocabulary=value)


def exponent(values: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log values, by least squares: 1 for a time that doubles with the value."""
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])


def run_growth(
    make_case: Callable[[Size, Runtime], Case], size: Size, along: str, runtime: Runtime, num_rounds: int,
) -> dict[str, Any]:
    """Medians and exponents of each contestant; each round runs every contestant once with every value."""
    values = VALUES[along]
    cases = [make_case(resized(size, along, value), runtime) for value in values]
    calls = {f"{who} {value}": call for value, case in zip(values, cases, strict=True)
             for who, call in case.contestants.items()}
    measured = measure(Case(cases[0].unit, 1, calls), {}, runtime, num_rounds)
    found: dict[str, Any] = {}
    for who in cases[0].contestants:
        seconds = [measured[f"{who} {value}"].median for value in values]
        found[who] = {"median_ms": [1e3 * one for one in seconds], "exponent": exponent(values, seconds),
                      "exponent_of_the_last": exponent(values[-2:], seconds[-2:])}
    return {"along": along, "values": list(values), "contestants": found, "missing": cases[0].missing}


def growth_as_text(found: dict[str, Any]) -> str:
    """A table of medians in milliseconds, and the exponents."""
    heads = "".join(f"{value:>11,}" for value in found["values"])
    lines = [f"{found['case']}, size {found['size']}, by {found['along']}: median ms, exponent, of the last two",
             f"  {'':32s}{heads}{'exponent':>10s}{'last':>7s}"]
    for who, row in found["contestants"].items():
        times = "".join(f"{one:11.1f}" for one in row["median_ms"])
        lines.append(f"  {who:32s}{times}{row['exponent']:10.2f}{row['exponent_of_the_last']:7.2f}")
    lines += [f"  {who}: {why}" for who, why in found["missing"].items()]
    return "\n".join(lines)
