"""Initial values of arrays. Any slice can be filled on the host without the rest of the array.

A value depends on (seed, name, layer, position in the array) and on nothing else: not on the runtime,
the mesh, the number of hosts, or the order in which arrays are filled. Each layer of a stacked array is
cut into runs of `CHUNK` elements in C order; each run has its own NumPy Philox generator, keyed by a
hash of (seed, name, layer, run). A host that needs a slice draws the runs that the slice touches, one at a
time, so that it never holds more than its slice and one run.
"""
import dataclasses
import hashlib
from collections.abc import Callable
from typing import Protocol

import numpy as np

CHUNK = 1 << 16

Index = tuple[slice, ...]


class Init(Protocol):
    """Fills one slice of one array."""

    def __call__(self, name: str, shape: tuple[int, ...], seed: int, index: Index) -> np.ndarray:
        """Returns float32 (or the array's own integer type) values of `array[index]`."""
        ...


@dataclasses.dataclass(frozen=True)
class Constant:
    """Every element has the same value."""

    value: float = 0.0

    def __call__(self, name: str, shape: tuple[int, ...], seed: int, index: Index) -> np.ndarray:
        return np.full(_sliced_shape(shape, index), self.value, np.float32)


@dataclasses.dataclass(frozen=True)
class Normal:
    """Independent draws from N(0, std^2)."""

    std: float = 0.02
    num_stacked: int = 0

    def __call__(self, name: str, shape: tuple[int, ...], seed: int, index: Index) -> np.ndarray:
        def draw(generator: np.random.Generator, count: int) -> np.ndarray:
            return generator.standard_normal(count, np.float32) * np.float32(self.std)

        return _draw_slice(draw, name, shape, seed, index, self.num_stacked)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Independent draws from U(-bound, bound)."""

    bound: float
    num_stacked: int = 0

    def __call__(self, name: str, shape: tuple[int, ...], seed: int, index: Index) -> np.ndarray:
        def draw(generator: np.random.Generator, count: int) -> np.ndarray:
            unit = generator.random(count, np.float32)
            return (2 * unit - 1) * np.float32(self.bound)

        return _draw_slice(draw, name, shape, seed, index, self.num_stacked)


@dataclasses.dataclass(frozen=True)
class FromArray:
    """Values that exist already, such as pretrained weights; `load` is called when they are needed."""

    load: Callable[[], np.ndarray]

    def __call__(self, name: str, shape: tuple[int, ...], seed: int, index: Index) -> np.ndarray:
        array = self.load()
        if array.shape != shape:
            raise ValueError(f"{name}: expected an array of shape {shape}, the loaded one has {array.shape}")
        return np.ascontiguousarray(array[index])


def xavier_uniform(fan_in: int, fan_out: int) -> Uniform:
    """Glorot and Bengio's uniform initialisation: variance 2 / (fan_in + fan_out)."""
    return Uniform((6.0 / (fan_in + fan_out)) ** 0.5)


def full_index(shape: tuple[int, ...]) -> Index:
    """The index that selects all of an array."""
    return tuple(slice(0, size) for size in shape)


def _sliced_shape(shape: tuple[int, ...], index: Index) -> tuple[int, ...]:
    return tuple(len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True))


def _draw_slice(
    draw: Callable[[np.random.Generator, int], np.ndarray],
    name: str, shape: tuple[int, ...], seed: int, index: Index, num_stacked: int,
) -> np.ndarray:
    """Draws `array[index]`; the first `num_stacked` dimensions count independent arrays."""
    ranges = [range(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
    if any(r.step != 1 for r in ranges):
        raise ValueError(f"{name}: slices of an initial value must have step 1, got {index}")
    lead, inner_shape, inner = shape[:num_stacked], shape[num_stacked:], ranges[num_stacked:]
    out = np.empty([len(r) for r in ranges], np.float32)
    for out_position in np.ndindex(*out.shape[:num_stacked]):
        position = tuple(r.start + p for r, p in zip(ranges, out_position, strict=False))
        layer = int(np.ravel_multi_index(position, lead)) if lead else 0
        out[out_position] = _draw_inner(draw, name, inner_shape, seed, layer, inner)
    return out


def _draw_inner(
    draw: Callable[[np.random.Generator, int], np.ndarray],
    name: str, shape: tuple[int, ...], seed: int, layer: int, ranges: list[range],
) -> np.ndarray:
    """Draws a slice of one unstacked array; holds no more than the slice and one run."""
    size = int(np.prod(shape, dtype=np.int64))
    row_size = size // shape[0] if shape else 1
    rows = ranges[0] if shape else range(1)
    tail = tuple(slice(r.start, r.stop) for r in ranges[1:])
    out = np.empty([len(rows), *(len(r) for r in ranges[1:])], np.float32)
    pending = np.empty(0, np.float32)
    begin, end = rows.start * row_size, rows.stop * row_size
    filled_rows = 0
    for number in range(begin // CHUNK, -(-end // CHUNK)):
        first = number * CHUNK
        run = draw(_generator(seed, name, layer, number), min(CHUNK, size - first))
        pending = np.concatenate([pending, run[max(begin - first, 0):end - first]])
        count = len(pending) // row_size
        out[filled_rows:filled_rows + count] = (
            pending[:count * row_size].reshape(count, *shape[1:])[(slice(None), *tail)])
        filled_rows, pending = filled_rows + count, pending[count * row_size:]
    return out if shape else out[0]


def _generator(seed: int, name: str, layer: int, chunk: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}\n{name}\n{layer}\n{chunk}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
