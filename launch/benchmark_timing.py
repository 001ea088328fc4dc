"""How the benchmark measures: interleaved calls, medians, ratios, memory, and the ceilings of the machine."""
import dataclasses
import functools
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vqim.contracts.runtime import Runtime
from vqim.runtime.allocator import freed_memory_kept

from .benchmark_cases import Case

PRODUCT_SIZE = 1024
NUM_READ = 2**25
"""Sizes of the measured ceilings: a product of square matrices, and a sum over numbers that no cache holds."""


@dataclasses.dataclass
class Measured:
    """One contestant's times, in seconds.

    Attributes:
      seconds: of each round.
      ratio: the median over rounds of the first contestant's time divided by this one's: above 1, this one is faster.
      peak_bytes: the most memory that a call takes on top of what is there before it; None where it is not known.
    """

    seconds: list[float]
    ratio: float
    peak_bytes: int | None

    @property
    def median(self) -> float:
        """The median of the times."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The range of the middle half of the times, divided by their median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median


def measure(
    case: Case, ceilings: dict[str, Callable[[], Tensor]], runtime: Runtime, num_rounds: int,
) -> dict[str, Measured]:
    """The contestants and the ceilings, by name: each round runs every one of them once.

    Three calls of each come before, which compile and warm up; memory is that of the second.
    """
    calls = {**case.contestants, **ceilings}
    peaks = {name: peak_memory(functools.partial(_wait, call, runtime)) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with freed_memory_kept():  # as launch.train
        for call in calls.values():
            _wait(call, runtime)
        for _ in range(num_rounds):
            for name, call in calls.items():
                begin = time.perf_counter()
                _wait(call, runtime)
                seconds[name].append(time.perf_counter() - begin)
    first = seconds[next(iter(calls))]
    return {name: Measured(times, statistics.median(ours / theirs for ours, theirs in zip(first, times, strict=True)),
                           peaks[name])
            for name, times in seconds.items()}


def _wait(call: Callable[[], Tensor], runtime: Runtime) -> None:
    runtime.fetch([call()])


def peak_memory(call: Callable[[], Any]) -> int | None:
    """The most memory that the process takes during a call, beyond what it has before; None without Linux.

    A call before it loads what is read from files, which counts as a process's memory too.
    """
    call()
    gc.collect()
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")  # forgets the peak so far
    except OSError:
        call()
        return None
    before = _kibibytes(status.read_text(), "VmRSS")
    call()
    return 1024 * max(0, _kibibytes(status.read_text(), "VmHWM") - before)


def _kibibytes(status: str, name: str) -> int:
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))


def make_ceilings(dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """A matrix product in this dtype, and a sum that reads memory."""
    a, long = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, dtype=dtype), torch.ones(NUM_READ)
    return {"matrix product": lambda: torch.mm(a, a), "memory": lambda: long.sum()}


def count_flops(call: Callable[[], Any]) -> int:
    """Floating-point operations in the matrix products of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def run_case(case: Case, dtype: torch.dtype, runtime: Runtime, num_rounds: int) -> dict[str, Any]:
    """A case's results, as --json prints them."""
    on_torch = runtime.describe()["runtime"] == "torch"
    ceilings = make_ceilings(dtype) if on_torch else {}
    measured = measure(case, ceilings, runtime, num_rounds)
    ours = next(iter(case.contestants))
    found: dict[str, Any] = {
        "unit": case.unit, "amount": case.amount, "missing": case.missing,
        "contestants": {
            who: {"median_ms": 1e3 * m.median, "spread": m.spread, f"{case.unit}_per_second": case.amount / m.median,
                  "speed_of_ours": 1 / m.ratio, "peak_mib": m.peak_bytes and m.peak_bytes / 2**20}
            for who, m in measured.items() if who in case.contestants}}
    if on_torch:
        flops = count_flops(case.contestants[ours])
        rates = {"flops_per_second": 2 * PRODUCT_SIZE**3 / measured["matrix product"].median,
                 "bytes_per_second": 4 * NUM_READ / measured["memory"].median}
        found["ceilings"] = {
            **rates, "flops": flops, "bytes": case.num_bytes,
            "share_of_product_ceiling": flops / rates["flops_per_second"] / measured[ours].median,
            "share_of_memory_ceiling": case.num_bytes / rates["bytes_per_second"] / measured[ours].median}
    return found


def as_text(found: dict[str, Any]) -> str:
    """A table of one case."""
    unit = found["unit"]
    lines = [f"{found['case']}, size {found['size']}: {found['amount']:,} {unit} a call",
             f"  {'':32s}{'median ms':>11s}{'spread':>8s}{unit + '/s':>14s}{'ours is':>9s}{'peak MiB':>10s}"]
    for who, row in found["contestants"].items():
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}"
        lines.append(f"  {who:32s}{row['median_ms']:11.1f}{row['spread']:8.0%}{row[f'{unit}_per_second']:14,.0f}"
                     f"{row['speed_of_ours']:8.2f}x{peak:>10s}")
    lines += [f"  {who}: {why}" for who, why in found["missing"].items()]
    if "ceilings" in found:
        top = found["ceilings"]
        text = (f"  ours reaches {top['share_of_product_ceiling']:.0%} of {top['flops_per_second'] / 1e9:.1f} GFLOP/s, "
                "measured in a product of matrices")
        if top["bytes"]:
            text += (f", and {top['share_of_memory_ceiling']:.0%} of {top['bytes_per_second'] / 1e9:.1f} GB/s, "
                     "measured in a sum")
        lines.append(text)
    return "\n".join(lines)
