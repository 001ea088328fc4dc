"""Estimates how long a compiled program would take on its chips.

The TPU compiler gives cycles for most instructions. It gives none for Pallas kernels, for some copies and for exchanges
between chips; simple models of matrix units, memory and links stand in for these. Nothing here is measured on a chip.

Read `estimate` first: it goes through all instructions that run (`hlo.Module.executed`), gives each a time and a source
(`Work.source`), and sums the exchanges (`_exchanges`, `collective_seconds`). `kinds` and `Work.bound` only prepare the
report. chips.py has the chips' numbers; docs/tpu_estimates.md has results.
"""
import collections
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from vqim.runtime.chips import Chip
from vqim.runtime.hlo import COLLECTIVES, Collective, Instruction, Module

KERNEL_EFFICIENCY = 0.5
"""The share of peak speed that a Pallas kernel's matrix products reach. This is our assumption: heads are 64 wide, half
the width of the matrix units in v4, v5e and v5p."""

HOP_SECONDS = 1e-6
"""The latency from one chip to the next, from "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus)."""

_IN_BACKGROUND = ("copy-start", "copy-done", "slice-start", "slice-done", "async-start", "async-done", "async-update")
_FREE = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "partition-id", "while", "call",
         "conditional", "opt-barrier", *_IN_BACKGROUND)


@dataclasses.dataclass(frozen=True)
class Work:
    """The cost of one instruction in a step, on one device.

    Attributes:
      seconds: the time of all its runs in a step.
      count: the number of these runs.
      source: where the time comes from: 'compiler', or a model: 'kernel', 'bytes'.
      flops: FLOPs in matrix products and convolutions.
      num_bytes: bytes moved from and to HBM.
      instruction: the instruction.
    """

    seconds: float
    count: int
    source: str
    flops: float
    num_bytes: float
    instruction: Instruction

    def bound(self, chip: Chip) -> str:
        """What takes the time: 'products', 'memory', or 'other' where neither needs half of it at peak speed."""
        products, memory = self.flops / chip.peak_flops, self.num_bytes / chip.hbm_bytes_per_second
        if max(products, memory) < self.seconds / 2:
            return "other"
        return "products" if products >= memory else "memory"


@dataclasses.dataclass(frozen=True)
class Exchange:
    """All collectives of the same kind in a step.

    Attributes:
      kind: one of `hlo.COLLECTIVES`.
      count: the number of collectives that run.
      num_bytes: bytes on one device that they reduce, gather or move: operands or results, whichever is larger.
      seconds: their time, from the link model.
      exposed_seconds: the part of this time during which no other work is scheduled.
    """

    kind: str
    count: int
    num_bytes: float
    seconds: float
    exposed_seconds: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimate for a step on one device.

    Attributes:
      work: all work, most expensive first.
      exchanges: the exchanges by kind.
      flops: FLOPs of all matrix products and convolutions that run, rematerialised ones included.
    """

    work: list[Work]
    exchanges: list[Exchange]
    flops: float

    def seconds_by(self, source: str) -> float:
        """The time of all work with this source."""
        return sum(work.seconds for work in self.work if work.source == source)

    @property
    def step_seconds(self) -> float:
        """The time of all work, one after the other, and of collectives that no work hides."""
        return sum(work.seconds for work in self.work) + sum(one.exposed_seconds for one in self.exchanges)


def estimate(module: Module, chip: Chip, shape: Sequence[int], coordinates: np.ndarray) -> Estimate:
    """Adds up the cost of a program.

    Args:
      module: the program.
      chip: the chip on which it runs.
      shape: the shape of the slice.
      coordinates: the coordinates of its devices, [num_devices, 3].
    """
    work, flops = [], 0.0
    for computation, instruction, count in module.executed():
        own_flops = module.flops(computation, instruction)
        flops += own_flops * count
        if (instruction.opcode in _FREE or instruction.opcode.startswith(COLLECTIVES)
                or module.fused_collective(instruction) and not module.has_products(instruction)):
            continue
        num_bytes = module.hbm_bytes(computation, instruction)
        if instruction.cycles is not None:
            seconds, source = instruction.cycles / chip.hertz, "compiler"
        elif 'custom_call_target="tpu_custom_call"' in instruction.attributes:
            own_flops, num_bytes = kernel_cost(instruction)
            flops += own_flops * count
            seconds = max(own_flops / (chip.peak_flops * KERNEL_EFFICIENCY), num_bytes / chip.hbm_bytes_per_second)
            source = "kernel"
        else:
            seconds, source = num_bytes / chip.hbm_bytes_per_second, "bytes"
        work.append(Work(seconds * count, count, source, own_flops * count, num_bytes * count, instruction))
    work.sort(key=lambda one: -one.seconds)
    return Estimate(work, _exchanges(module.collectives(), chip, shape, coordinates), flops)


def kinds(work: Iterable[Work]) -> list[Work]:
    """Merges work that is the same, for example in unrolled blocks; most expensive first.

    Work is the same if operation, program line and FLOPs are equal. The most expensive instruction of each kind stands
    for all. An instruction without an operation is a kind of its own.
    """
    found = collections.defaultdict(list)
    for one in work:
        operation = one.instruction.operation or one.instruction.name
        found[operation, one.instruction.source, one.source, one.flops / one.count].append(one)
    merged = []
    for same in found.values():
        first = max(same, key=lambda one: one.seconds)
        merged.append(dataclasses.replace(
            first, seconds=sum(one.seconds for one in same), count=sum(one.count for one in same),
            flops=sum(one.flops for one in same), num_bytes=sum(one.num_bytes for one in same)))
    return sorted(merged, key=lambda one: -one.seconds)


def kernel_cost(kernel: Instruction) -> tuple[float, float]:
    """FLOPs and bytes of a Pallas kernel, from the `cost_estimate` in its call."""
    cost = re.search(r'"cost_estimate": ?(\{[^}]*\})', kernel.attributes)
    counts = json.loads(cost[1]) if cost else {}
    return float(counts.get("flops", 0)), float(counts.get("bytes_accessed", 0))


def collective_seconds(
    collective: Collective, chip: Chip, shape: Sequence[int], coordinates: np.ndarray,
) -> float:
    """The time of one collective by the link model.

    Each dimension of the slice along which a group of devices extends gives each device one link, or two where it is a
    ring. It is a ring if the group spans a whole dimension whose size is a multiple of `Chip.torus_size`. The model
    assumes an algorithm that keeps all links busy in one direction. With n devices, the share of the array that passes
    through each device is:
      all-reduce: 2 (n - 1) / n
      reduce-scatter, all-gather: (n - 1) / n
      all-to-all: (n - 1) / n, times the mean number of hops
      collective-permute: all of it over one link, times the largest number of hops
    In addition, every hop on the way to the farthest device costs HOP_SECONDS.
    """
    group = collective.groups[0]
    if collective.kind == "collective-permute":
        hops = max(_hops(coordinates[pair[0]], coordinates[pair[1]], chip, shape) for pair in collective.groups)
        return hops * (collective.operand_bytes / chip.link_bytes_per_second + HOP_SECONDS)
    if len(group) < 2:
        return 0.0
    places = coordinates[group]
    links = 0
    for dim, size in enumerate(shape):
        extent = len(np.unique(places[:, dim]))
        if extent > 1:
            links += 2 if extent == size and _is_ring(size, chip) else 1
    largest = max(collective.operand_bytes, collective.result_bytes)
    hops_away = [_hops(places[0], place, chip, shape) for place in places]
    factor = {"all-reduce": 2.0, "all-to-all": max(1.0, float(np.mean(hops_away)))}.get(collective.kind, 1.0)
    passed = factor * (len(group) - 1) / len(group) * largest
    return passed / (links * chip.link_bytes_per_second) + HOP_SECONDS * max(hops_away)


def _is_ring(size: int, chip: Chip) -> bool:
    return size % chip.torus_size == 0


def _hops(a: np.ndarray, b: np.ndarray, chip: Chip, shape: Sequence[int]) -> int:
    """The number of links between two chips."""
    total = 0
    for size, distance in zip(shape, np.abs(a - b).tolist(), strict=False):
        total += min(distance, size - distance) if _is_ring(size, chip) else distance
    return int(total)


def _exchanges(
    collectives: Sequence[Collective], chip: Chip, shape: Sequence[int], coordinates: np.ndarray,
) -> list[Exchange]:
    totals: dict[str, Exchange] = {}
    for one in collectives:
        seconds = collective_seconds(one, chip, shape, coordinates)
        exposed = max(0.0, seconds - one.hidden_cycles / chip.hertz)
        so_far = totals.get(one.kind, Exchange(one.kind, 0, 0.0, 0.0, 0.0))
        num_bytes = max(one.operand_bytes, one.result_bytes)
        totals[one.kind] = Exchange(
            one.kind, so_far.count + one.count, so_far.num_bytes + num_bytes * one.count,
            so_far.seconds + seconds * one.count, so_far.exposed_seconds + exposed * one.count)
    return sorted(totals.values(), key=lambda exchange: -exchange.seconds)


def peak_share(flops: float, seconds: float, chip: Chip, num_chips: int) -> float:
    """The share of the chips' peak speed that this number of operations in this time reaches."""
    return flops / seconds / (chip.peak_flops * num_chips) if math.isfinite(seconds) and seconds else 0.0
