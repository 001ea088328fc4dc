"""Starts a run from other runs: decides which of their arrays become which of its own.

Uses are a second phase, a larger decoder for frozen codes, or another domain. The run is described like any other, and
`train.start_from` says where arrays come from. It is strict in both directions: arrays that are not taken, and arrays
that start fresh, have to be listed.
"""
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.reader import Checkpoint
from vqim.state.init import Index
from vqim.state.leaf import Leaf, Spec

_TAKEN = ("params/", "statistics/")
"""The sections that can be taken. Slots, flags and moving averages always start fresh."""


class StartFromError(ValueError):
    """`start_from` does not fit this run or the other runs."""


@dataclasses.dataclass(frozen=True)
class StartFrom:
    """Another run, and which arrays are taken from it.

    Patterns are regular expressions for whole names, such as 'params/tokenizer/encoder/(.*)'. Where the other run kept
    a moving average of a parameter, the average is taken, but under the parameter's name; not one that has not begun,
    such as a discriminator's before its first step.

    Attributes:
      run: the other run's directory.
      arrays: pattern for a name there -> the name here, which may repeat its groups as \\1, \\2 ...
      left: patterns for those `params/` and `statistics/` there that are not taken.
      fresh: patterns for those `params/` and `statistics/` here that no run gives. They start from their own initial
        values.
      step: the step of the checkpoint; by default the newest.
    """

    run: str
    arrays: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"(.*)": r"\1"})
    left: Sequence[str] = ()
    fresh: Sequence[str] = ()
    step: int | None = None

    def __post_init__(self) -> None:
        for pattern, target in [*self.arrays.items(), *((pattern, "") for pattern in (*self.left, *self.fresh))]:
            try:
                re.compile(f"{pattern}|").sub(target, "", count=1)  # an empty match: reads the target's groups
            except (re.error, IndexError) as error:
                raise ValueError(f"arrays, left and fresh must have regular expressions, got {pattern!r}"
                                 f"{f' -> {target!r}' if target else ''}: {error}") from error


def started_spec(spec: Spec, sources: Sequence[StartFrom]) -> tuple[Spec, list[dict[str, Any]]]:
    """A state's spec with initial values from other runs, and a record of what was read: run, step, arrays.

    Raises:
      NoCheckpointError: a run has none.
      StartFromError: an array is only on one side without being listed in `left` or `fresh`, has another shape there,
        is given twice, or is given and named in `fresh`; the message lists these arrays.
    """
    if not sources:
        return spec, []
    filled: dict[str, Leaf] = {}
    records: list[dict[str, Any]] = []
    problems: list[str] = []
    for source in sources:
        checkpoint = CheckpointManager(f"{source.run}/checkpoints").open(source.step)
        taken = _matches(source, checkpoint, problems)
        for name, there in taken.items():
            problem = _misfit(name, spec, filled, checkpoint, there)
            if problem:
                problems.append(f"{source.run}: {there} -> {name}: {problem}")
            else:
                filled[name] = dataclasses.replace(spec[name], init=_Read(checkpoint, there))
        logging.info("Starting from step %d of %s: %d arrays.", checkpoint.step, source.run, len(taken))
        records.append({"run": source.run, "step": checkpoint.step, "arrays": len(taken)})
    problems += [f"{source.run}: fresh: no array of this run matches {pattern!r}"
                 for source in sources for pattern in source.fresh if not any(re.fullmatch(pattern, n) for n in spec)]
    begins_anew = [pattern for source in sources for pattern in source.fresh]
    for name in spec:
        if name.startswith(_TAKEN) and name not in filled and not _any(begins_anew, name):
            problems.append(f"{name}: no run gives it; name it in `fresh` to keep its initial values")
        if name in filled and _any(begins_anew, name):
            problems.append(f"{name}: it is in `fresh`, and a run gives it; name it in that run's `left` too")
    if problems:
        more = [f"and {len(problems) - 12} more"] if len(problems) > 12 else []
        raise StartFromError("start_from does not fit:\n  " + "\n  ".join(problems[:12] + more))
    fresh = [name for name in spec if name.startswith(_TAKEN) and name not in filled]
    logging.info("With initial values: %s.", ", ".join(fresh) or "nothing but slots")
    return spec | filled, records


def _matches(source: StartFrom, checkpoint: Checkpoint, problems: list[str]) -> dict[str, str]:
    """The names of the arrays taken -> the names of the arrays read from the other run."""
    there = checkpoint.names()
    taken: dict[str, str] = {}
    unused = {*source.arrays, *(pattern for pattern in source.left
                                if not any(re.fullmatch(pattern, name) for name in there))}
    for name in there:
        if not name.startswith(_TAKEN) or _any(source.left, name):
            continue
        matching = [(pattern, target) for pattern, target in source.arrays.items() if re.fullmatch(pattern, name)]
        if not matching:
            problems.append(f"{source.run}: {name} is not taken; name it in `left` if that is meant")
            continue
        pattern, target = matching[0]
        unused.discard(pattern)
        average = re.sub("^params/", "ema/", name)
        here = re.sub(f"^(?:{pattern})$", target, name)
        if here in taken:
            problems.append(f"{source.run}: {name} and {taken[here]} would both become {here}")
        taken[here] = average if average in there else name
    for pattern in sorted(unused):
        is_shadowed = any(re.fullmatch(pattern, name) for name in there)
        problems.append(f"{source.run}: " + (
            f"what {pattern!r} matches there, `left` or an earlier pattern has already" if is_shadowed else
            f"no array there matches {pattern!r}; it has {', '.join(there[:5])} ..."))
    return taken


def _misfit(name: str, spec: Spec, filled: Spec, checkpoint: Checkpoint, there: str) -> str | None:
    """The reason why an array cannot be taken; None if it can."""
    if name not in spec or not name.startswith(_TAKEN):
        return "this run has no such array; name it in `left` if that is meant"
    if name in filled:
        return "another run gives it too"
    shape, dtype = checkpoint.spec(there)
    if shape != spec[name].shape or dtype != np.float32:
        return (f"expected float32 {list(spec[name].shape)}, it has {dtype} {list(shape)}; name it in `left`, and "
                "here in `fresh`, to keep its initial values")
    return None


def _any(patterns: Sequence[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


@dataclasses.dataclass(frozen=True)
class _Read:
    """An initial value read from a checkpoint, slice by slice."""

    checkpoint: Checkpoint
    there: str

    def __call__(self, name: str, shape: tuple[int, ...], seed: int, index: Index) -> np.ndarray:
        values = self.checkpoint.read(self.there, index)
        if self.there.startswith("ema/") and not values.any():  # as the average is until its learner's first step
            return self.checkpoint.read(re.sub("^ema/", "params/", self.there), index)
        return values
