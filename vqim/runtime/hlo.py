"""Reads a compiled XLA program from its text (HLO): what runs how often, with which FLOPs, bytes and cycles.

XLA's compiler prints the optimised, scheduled program of one device. `vqim.runtime.estimate` needs from it the cost of
each instruction and the exchanges between devices; XLA has no other interface that gives these.

To know before: a program is a list of computations, and a computation is a list of instructions in the order in which
they run. A fusion is one instruction whose parts are a computation of their own; loops and conditionals call
computations too. A collective exchanges data between devices, often in the background, with a start and a done
instruction. Read `Module.__init__` (how text becomes instructions) first, then `executed` (what runs how often), then
`flops`, `hbm_bytes` and `collectives`; the functions below the class parse single attributes.
"""
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

NO_CYCLES = 2**63 - 1
"""The number of cycles that the compiler writes where it has no estimate."""

_SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "bf16": 2,
          "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*)$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Array:
    """An array on one device.

    Attributes:
      dtype: the dtype as HLO writes it.
      shape: its dimensions.
      layout: the layout as HLO writes it; 'S(1)' in it means a memory on the chip that is not HBM.
    """

    dtype: str
    shape: tuple[int, ...]
    layout: str = ""

    @property
    def num_bytes(self) -> float:
        """Its size without padding."""
        return math.prod(self.shape) * _SIZES.get(self.dtype, 0)

    @property
    def in_hbm(self) -> bool:
        """Whether it lies in HBM."""
        return "S(" not in self.layout


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: its name, unique in its computation.
      opcode: 'fusion', 'all-reduce' ...
      results: one array, or the arrays in a tuple.
      operands: the operands' names.
      attributes: all text after the operands.
      is_root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate; None without one."""
        match = _CYCLES.search(self.attributes)
        cycles = int(match[1]) if match else NO_CYCLES
        return None if cycles == NO_CYCLES else cycles

    @property
    def operation(self) -> str:
        """The modules and the operation that it comes from; see `operation_name`."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return operation_name(match[1]) if match else ""

    @property
    def source(self) -> str:
        """The file and line of the Python call that made it."""
        match = re.search(r'source_file="([^"]*)" source_line=(\d+)', self.attributes)
        return f"{match[1]}:{match[2]}" if match else ""

    def called(self, *words: str) -> list[str]:
        """The computations that it names with words such as 'calls' or 'body'."""
        return [name for word in words for name in re.findall(rf"\b{word}=%?([\w.-]+)", self.attributes)]


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices.

    Attributes:
      kind: one of COLLECTIVES.
      count: how often it runs.
      operand_bytes: bytes of the operands on one device, each time.
      result_bytes: bytes of the results on one device, each time.
      groups: the devices that exchange with each other, [num_groups, group_size]; for a collective-permute, pairs of
        source and target.
      hidden_cycles: cycles of other work scheduled between its start and its end, each time.
      operation: see `Instruction.operation`.
    """

    kind: str
    count: int
    operand_bytes: float
    result_bytes: float
    groups: np.ndarray
    hidden_cycles: float
    operation: str


class Module:
    """A program.

    Attributes:
      computations: the instructions in each computation, in the order of the schedule.
      entry: the name of the computation with which the program starts.
      header: the line before all computations.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, self.header = "", text.split("\n", 1)[0]
        current: dict[str, Instruction] = {}
        for line in text.splitlines()[1:]:
            if head := _HEAD.match(line):
                current = self.computations.setdefault(head[2], {})
                self.entry = head[2] if head[1] else self.entry
            elif match := _INSTRUCTION.match(line):
                current[match[2]] = _instruction(match[2], match[3], bool(match[1]))

    def aliases(self) -> dict[int, int]:
        """A map from arguments to the results that reuse their memory."""
        found = re.findall(r"\{(\d*)\}: \((\d+), \{\}", self.header)
        return {int(argument): int(result or 0) for result, argument in found}

    def executed(self, computation: str | None = None, times: int = 1) -> Iterator[tuple[str, Instruction, int]]:
        """Every instruction that runs, its computation, and how often; a fusion counts as one instruction."""
        name = computation or self.entry
        for instruction in self.computations[name].values():
            yield name, instruction, times
            for inner, runs in self._inner(instruction):
                yield from self.executed(inner, times * runs)

    def _inner(self, instruction: Instruction) -> list[tuple[str, int]]:
        """The computations that an instruction runs, and how often; for a conditional, all that it may run."""
        if instruction.opcode == "while":
            return [(name, self.trip_count(instruction)) for name in instruction.called("body", "condition")]
        if instruction.opcode not in ("call", "async-start", "conditional"):
            return []
        branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
        names = re.findall(r"[\w.-]+", branches[1]) if branches else []
        return [(name, 1) for name in names + instruction.called(
            "to_apply", "calls", "true_computation", "false_computation")]

    def trip_count(self, loop: Instruction) -> int:
        """How often the body of a loop runs. Loops count from 0 to the only constant except 0 in their condition.

        (A 64-bit counter is two words on a TPU; the upper word is compared with zero.)

        Raises:
          ValueError: the condition has another form.
        """
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        (condition,) = loop.called("condition")
        instructions = self.computations[condition]
        limits = {int(match[1]) for instruction in instructions.values() if instruction.opcode == "constant"
                  and (match := re.match(r"\((\d+)\)", instruction.attributes))} - {0}
        if len(limits) != 1:
            raise ValueError(f"the loop {loop.name} does not say how often it runs")
        return limits.pop()

    def flops(self, computation: str, instruction: Instruction) -> float:
        """Multiplications and additions of matrix products and convolutions in an instruction, fusions included."""
        if instruction.opcode == "fusion":
            return self._fusion_flops(instruction.called("calls")[0])
        if instruction.opcode not in ("convolution", "dot"):
            return 0.0
        here = self.computations[computation]
        left, right = (here[name].results[0] for name in instruction.operands[:2])
        result = instruction.results[0]
        if instruction.opcode == "dot":
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
            dims = [int(dim) for dim in contracted[1].split(",") if dim] if contracted else []
            return 2.0 * math.prod(result.shape) * math.prod(left.shape[dim] for dim in dims)
        return _convolution_flops(left.shape, right.shape, result.shape, instruction.attributes)

    @functools.cache  # noqa: B019  a module lives as long as its report
    def _fusion_flops(self, computation: str) -> float:
        return sum(self.flops(computation, inner) for inner in self.computations[computation].values())

    def hbm_bytes(self, computation: str, instruction: Instruction) -> float:
        """The bytes that an instruction reads from and writes to HBM; for an array that is only sliced, its slices."""
        here = self.computations[computation]
        operands = [here[name] for name in instruction.operands if name in here]
        if instruction.opcode == "dynamic-update-slice":  # in place: it reads and writes the update
            return 2.0 * sum(array.num_bytes for array in operands[1].results if array.in_hbm)
        inner = self.computations[instruction.called("calls")[0]] if instruction.opcode == "fusion" else {}
        parameters = {int(re.match(r"\((\d+)\)", one.attributes)[1]): name  # type: ignore[index]
                      for name, one in inner.items() if one.opcode == "parameter"}
        total = 0.0
        for number, operand in enumerate(operands):
            size = sum(array.num_bytes for array in operand.results if array.in_hbm)
            users = [one for one in inner.values() if parameters.get(number) in one.operands]
            first = {one.opcode for one in users if one.operands[0] == parameters.get(number)}
            if size and first == {"dynamic-slice"}:
                size = sum(one.results[0].num_bytes for one in users)
            elif size and first == {"dynamic-update-slice"}:
                size = 0.0
            total += size
        updates = [one for one in inner.values() if one.opcode == "dynamic-update-slice"]
        whole = {one.results[0].shape: inner[one.operands[1]].results[0].num_bytes for one in updates}
        return total + sum(whole.get(array.shape, array.num_bytes) for array in instruction.results if array.in_hbm)

    def collectives(self) -> list[Collective]:
        """All collectives that run."""
        return [found for computation, instruction, times in self.executed()
                if (found := self._collective(computation, instruction, times))]

    def _collective(self, computation: str, instruction: Instruction, times: int) -> Collective | None:
        kind, here, inner = instruction.opcode.removesuffix("-start"), self.computations[computation], instruction
        if fused := self.fused_collective(instruction):
            if beside := self._beside.get(_channel(fused)):
                return self._overlapped(fused, instruction, times) if instruction is beside[0] else None
            # The compiler writes a reduce-scatter as a fusion: an all-reduce, from which each device takes its slice.
            inner, kind = fused, "reduce-scatter" if fused.opcode == "all-reduce" else fused.opcode
        elif kind not in COLLECTIVES:
            return None
        operands = [array for name in instruction.operands for array in here[name].results]
        results, hidden = instruction.results, 0.0
        if instruction.opcode.endswith("-start"):
            # The result of a start also has its operands, and that of a permute has two flags.
            (done,) = (one for one in here.values() if instruction.name in one.operands)
            results, hidden = done.results, self._cycles_between(here, instruction, done)
        elif wrapper := self._async_start(computation):
            outer, start = wrapper
            (done,) = (one for one in outer.values() if start.name in one.operands and one.opcode == "async-done")
            hidden = self._cycles_between(outer, start, done)
        return Collective(kind, times, sum(array.num_bytes for array in operands),
                          sum(array.num_bytes for array in results), device_groups(inner.attributes), hidden,
                          instruction.operation)

    def fused_collective(self, instruction: Instruction) -> Instruction | None:
        """The collective for which a fusion was made."""
        if instruction.opcode != "fusion":
            return None
        inner = self.computations[instruction.called("calls")[0]].values()
        return next((one for one in inner if one.opcode in COLLECTIVES), None)

    @functools.cached_property
    def _beside(self) -> dict[str, list[Instruction]]:
        """Fusions of products with a part of a collective that runs at the same time, by the collective's channel.

        The compiler splits such a collective over three or more fusions: the first starts it, the last ends it.
        """
        found: dict[str, list[Instruction]] = {}
        for here in self.computations.values():
            for instruction in here.values():
                fused = self.fused_collective(instruction)
                if fused and self.has_products(instruction):
                    found.setdefault(_channel(fused), []).append(instruction)
        return found

    def has_products(self, fusion: Instruction) -> bool:
        """Whether a fusion has products or convolutions."""
        return self._fusion_flops(fusion.called("calls")[0]) > 0

    def _overlapped(self, fused: Instruction, fusion: Instruction, times: int) -> Collective:
        operands = [self.computations[fusion.called("calls")[0]][name] for name in fused.operands]
        hidden = sum(one.cycles or 0 for one in self._beside[_channel(fused)])
        return Collective(fused.opcode, times, sum(array.num_bytes for one in operands for array in one.results),
                          sum(array.num_bytes for array in fused.results), device_groups(fused.attributes), hidden,
                          fusion.operation)

    def _async_start(self, computation: str) -> tuple[dict[str, Instruction], Instruction] | None:
        """The instruction that runs a computation in the background, and the instructions around it."""
        for here in self.computations.values():
            for instruction in here.values():
                if instruction.opcode == "async-start" and computation in instruction.called("calls"):
                    return here, instruction
        return None

    def _cycles_between(self, here: dict[str, Instruction], start: Instruction, done: Instruction) -> float:
        order = list(here)
        between = [here[name] for name in order[order.index(start.name) + 1:order.index(done.name)]]
        inner = [(one, runs) for instruction in between for name, runs in self._inner(instruction)
                 for _, one, runs in self.executed(name, runs)]
        return float(sum((one.cycles or 0) * runs for one, runs in [*((one, 1) for one in between), *inner]))


def _channel(collective: Instruction) -> str:
    match = re.search(r"channel_id=(\d+)", collective.attributes)
    return match[1] if match else ""


def operation_name(text: str) -> str:
    """The name that torch_xla gives an operation, without its numbers and without the path into a loop."""
    return re.sub(r"\.\d+(?=/|$)", "", text).split("/xla__scan/call/")[-1]


def device_groups(attributes: str) -> np.ndarray:
    """The devices that take part in a collective together, [num_groups, group_size]."""
    if pairs := re.search(r"source_target_pairs=\{([\d,{}]*)\}", attributes):
        return np.array([list(map(int, pair.split(","))) for pair in re.findall(r"[\d,]*\d", pairs[1])
                         if "," in pair]).reshape(-1, 2)
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, sizes = (tuple(map(int, text.split(","))) for text in (iota[1], iota[2]))
        devices = np.arange(math.prod(sizes)).reshape(sizes)
        return (devices.transpose(tuple(map(int, iota[3].split(",")))) if iota[3] else devices).reshape(shape)
    listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes)
    if listed is None:
        raise ValueError(f"expected replica_groups or source_target_pairs, got {attributes[:200]}")
    return np.array([list(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1])])


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    """Makes an instruction from the text after '='."""
    shape, rest = _balanced(text) if text.startswith("(") else text.split(" ", 1)
    opcode, rest = rest.strip().split("(", 1)
    inside, attributes = _balanced("(" + rest)
    if opcode in ("constant", "parameter"):
        attributes, inside = inside + attributes, ""
    # Operands are written as names; some versions write their types before them.
    operands = tuple(re.findall(r"%([\w.-]+)", inside))
    results = tuple(Array(dtype, tuple(int(size) for size in sizes.split(",") if size), layout)
                    for dtype, sizes, layout in _ARRAY.findall(shape))
    return Instruction(name, opcode, results, operands, attributes, is_root)


def _balanced(text: str) -> tuple[str, str]:
    """Splits a text that begins with a parenthesis after the matching closing one."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return text[:match.end()], text[match.end():]
    raise ValueError(f"expected as many ) as (, got {text[:200]}")


def _convolution_flops(
    left: tuple[int, ...], right: tuple[int, ...], result: tuple[int, ...], attributes: str,
) -> float:
    """FLOPs of products with real elements, not with padding or the holes of a dilation.

    The TPU compiler writes batched matrix products as convolutions with such holes.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    if labels is None:
        raise ValueError(f"expected dim_labels, got {attributes[:200]}")
    inputs, kernels, outputs = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", attributes)
    options = dict(part.split("=") for part in window[1].split()) if window else {}
    spatial = sorted(label for label in outputs if label.isdigit())

    def option(name: str, dim: int, default: str) -> str:
        return options[name].split("x")[dim] if name in options else default

    pairs = 1.0
    for dim, label in enumerate(spatial):
        low, high = map(int, option("pad", dim, "0_0").split("_"))
        pairs *= _window_pairs(
            left[inputs.index(label)], right[kernels.index(label)], result[outputs.index(label)], low,
            int(option("stride", dim, "1")), int(option("lhs_dilate", dim, "1")), int(option("rhs_dilate", dim, "1")))
    groups = re.search(r"batch_group_count=(\d+)", attributes)
    batch = result[outputs.index("b")] if groups is None else left[inputs.index("b")] / int(groups[1])
    return 2.0 * pairs * batch * result[outputs.index("f")] * right[kernels.index("i")]


@functools.cache
def _window_pairs(size: int, kernel: int, outputs: int, low: int, stride: int, dilate: int, spread: int) -> int:
    """The number of pairs of output and kernel positions, along one dimension, that meet an element of the input."""
    places = np.arange(outputs)[:, None] * stride + np.arange(kernel) * spread - low
    return int(((places >= 0) & (places < (size - 1) * dilate + 1) & (places % dilate == 0)).sum())
