"""Which tokens are masked: schedules of mask ratios, masks drawn for training, and the order of filling an image.

    B batch, S = N K places: K codes at each of N positions, T steps
"""
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vqim.contracts.grid import Level, TokenGrid

MaskSchedule = Literal["cosine", "arccos", "linear", "square", "cubic", "root"]

_RATIOS: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda r: torch.cos(0.5 * math.pi * r),
    "arccos": lambda r: torch.arccos(r) / (0.5 * math.pi),
    "linear": lambda r: 1 - r,
    "square": lambda r: 1 - r ** 2,
    "cubic": lambda r: 1 - r ** 3,
    "root": lambda r: 1 - r ** 0.5,
}


def mask_ratio(schedule: MaskSchedule, r: Tensor) -> Tensor:
    """gamma(r), the share of places that are masked: it falls from 1 at r = 0 to 0 at r = 1. MaskGIT section 3.3.

    All but 'linear' and 'root' are concave: much is masked for most r, and few codes are settled in the first steps.
    """
    return _RATIOS[schedule](r)


def check_schedule(name: str, schedule: str) -> None:
    """Raises ValueError unless it is one of the schedules."""
    if schedule not in _RATIOS:
        raise ValueError(f"{name} must be one of {', '.join(get_args(MaskSchedule))}; got {schedule!r}")


def ranks(values_BS: Tensor) -> Tensor:
    """The place of each value in its sorted row, int64: 0 for the smallest. Each row is a permutation of 0 ... S-1."""
    order_BS = torch.argsort(values_BS, dim=-1, stable=True)
    return torch.argsort(order_BS, dim=-1, stable=True)


def choose_masked(ratios_B: Tensor, uniform_BS: Tensor) -> Tensor:
    """Masks ceil(ratio S) places of each row, at least one: those with the smallest draws from U[0, 1). bool [B, S].

    Each code is masked on its own, not with the others at its position (MoVQ section 3.2).
    """
    num_places = uniform_BS.shape[1]
    counts_B = (ratios_B * num_places).ceil().clamp(1, num_places)
    return ranks(uniform_BS) < counts_B[:, None]


def masked_after_steps(schedule: MaskSchedule, unknown_B: np.ndarray, num_steps: int) -> np.ndarray:
    """How many places of each image are still masked after each step, int64 [T, B].

    It is floor(gamma((t + 1) / T) u) for u places that are unknown in the beginning. As in MaskGIT's released decoder,
    every step settles at least one place, while there are any, and leaves at least one to the next step.
    """
    left_TB, before_B = [], np.asarray(unknown_B, np.int64)
    for step in range(num_steps):
        ratio = mask_ratio(schedule, torch.tensor((step + 1) / num_steps, dtype=torch.float64)).item()
        # 1e-9: 1 - 1 / 3 times 9 places is 6, not 5.
        left_B = np.maximum(np.floor(ratio * unknown_B + 1e-9).astype(np.int64), 1)
        left_B = np.minimum(left_B, before_B - 1).clip(0)
        before_B = left_B if step < num_steps - 1 else np.zeros_like(left_B)
        left_TB.append(before_B)
    return np.stack(left_TB)


def halton_order(grid: TokenGrid) -> np.ndarray:
    """The turn of each place in a spread-out order, int64 [S]: a permutation. Besnier et al. (2025), Halton-MaskGIT.

    Positions follow a Halton sequence of the bases 2 (rows) and 3 (columns), so that those of one step lie far from one
    another. The codes of a position depend on each other most of all, so the whole level has its first channel settled,
    then its second, and so on. Levels follow one another.
    """
    order, first = [], 0
    for level in grid.levels:
        turns_n = np.empty(level.num_positions, np.int64)
        turns_n[list(_halton_positions(level))] = np.arange(level.num_positions)
        turns_nK = turns_n[:, None] + level.num_positions * np.arange(level.channels)
        order.append(first + turns_nK.reshape(-1))
        first += turns_nK.size
    return np.concatenate(order)


def _halton_positions(level: Level) -> Iterator[int]:
    """Every position of a level, in the order in which the sequence first comes to it."""
    seen: set[int] = set()
    for number in itertools.count(1):
        row = int(level.height * _radical_inverse(number, 2))
        column = int(level.width * _radical_inverse(number, 3))
        position = row * level.width + column
        if position not in seen:
            seen.add(position)
            yield position
        if len(seen) == level.num_positions:
            return


def _radical_inverse(number: int, base: int) -> float:
    """The number's digits mirrored at the point: 6 = 110 in base 2 gives 0.011 = 3/8."""
    value, scale = 0.0, 1.0 / base
    while number:
        number, digit = divmod(number, base)
        value, scale = value + digit * scale, scale / base
    return value
