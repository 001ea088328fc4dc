"""States of tallies that are made of others, as flat dicts of arrays: what a kept evaluation writes to one file."""
from collections.abc import Mapping

import numpy as np


def join(parts: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One dict of several: each name has that of its part before it, as in 'pooled/mean'."""
    return {f"{part}/{name}": array for part, state in parts.items() for name, array in state.items()}


def part_of(state: Mapping[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    """One part of what `join` made; {} if it has no such part."""
    return {name[len(part) + 1:]: array for name, array in state.items() if name.startswith(f"{part}/")}
