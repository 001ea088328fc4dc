"""The layout of Adafactor's slots for each parameter: what is factored, and which elements share a scale."""
import dataclasses
from collections.abc import Sequence

import torch

from vqim.state.leaf import Leaf, Spec

# If fewer elements would share a scale of 4 bytes, the array has one scale (per layer) instead.
MIN_SHARING = 32


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one parameter's slots are laid out; dimensions are counted from 0 and never include 'layers'.

    Attributes:
      leaf: the parameter.
      inner: all dimensions except 'layers'; statistics of "the tensor" are taken over these.
      factored: the dimensions (row, column) of the factored second moment; None if it is not factored.
      shared: the dimensions along which elements of an int8 first moment share a scale; empty for scalars, which
        are never quantised.
    """

    leaf: Leaf
    inner: tuple[int, ...]
    factored: tuple[int, int] | None
    shared: tuple[int, ...]

    def slot(self, without: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Leaf:
        """A slot of zeros with the parameter's dimensions and axes, except those in `without`."""
        kept = [dim for dim in range(len(self.leaf.shape)) if dim not in without]
        return Leaf(tuple(self.leaf.shape[d] for d in kept), axes=tuple(self.leaf.axes[d] for d in kept), dtype=dtype)


def lay_out(params: Spec, min_factored_size: int) -> dict[str, Layout]:
    """Chooses a layout for each parameter.

    Args:
      params: the parameters.
      min_factored_size: the second moment is factored where the second largest dimension is at least this long.
    """
    layouts = {}
    for name, leaf in params.items():
        inner = tuple(range(0 if leaf.num_layers is None else 1, len(leaf.shape)))
        layouts[name] = Layout(leaf, inner, _largest_two(leaf, inner, min_factored_size), _sharing_dims(leaf, inner))
    return layouts


def _largest_two(leaf: Leaf, inner: tuple[int, ...], min_size: int) -> tuple[int, int] | None:
    by_size = sorted(inner, key=lambda dim: leaf.shape[dim])
    if len(by_size) < 2 or leaf.shape[by_size[-2]] < min_size:
        return None
    row, column = sorted(by_size[-2:])
    return row, column


def _sharing_dims(leaf: Leaf, inner: tuple[int, ...]) -> tuple[int, ...]:
    """One scale for each output unit of a kernel and for each row of a table, since a rare word has small updates; one
    scale for a whole vector."""
    words = {leaf.axes[dim]: dim for dim in inner}
    if "out" in words:
        preferred = tuple(dim for dim in inner if dim != words["out"])
    else:
        preferred = inner[-1:]
    count = 1
    for dim in preferred:
        count *= leaf.shape[dim]
    return preferred if count >= MIN_SHARING else inner
