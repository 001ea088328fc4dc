"""A leaf: one array of the training state, described before it has a value."""
import dataclasses
import math

import torch

from vqim.state.init import Constant, Init

State = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One named array of the training state.

    Attributes:
      shape: its shape.
      init: what fills it before the first step.
      axes: what each dimension is, one word each. Optimizers and partition rules read these:
        'layers'      identical blocks, stacked; nothing may ever be reduced over it
        'in', 'out'   a matrix [in, out], or a convolution [out, in, 'kh', 'kw']
        'vocabulary', 'features'   a table of vectors [vocabulary, features]
        'height', 'width', 'features'   positions
        'features'    a vector: bias, gain
      dtype: the dtype of the array.
      saved: whether checkpoints hold it. Constants that a package ships (VGG weights, say) are not saved.
    """

    shape: tuple[int, ...]
    init: Init = Constant(0.0)
    axes: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    saved: bool = True

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.shape):
            raise ValueError(f"a leaf of shape {self.shape} needs {len(self.shape)} axes, got {self.axes}")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole array."""
        return self.size * self.dtype.itemsize

    @property
    def num_layers(self) -> int | None:
        """The number of identical blocks stacked in it; None where it is no stack."""
        return self.shape[0] if self.axes[:1] == ("layers",) else None


Spec = dict[str, Leaf]


def select(arrays: dict[str, "torch.Tensor"], prefix: str) -> State:
    """The arrays whose names begin with `prefix`, under the rest of their names."""
    return {name[len(prefix):]: array for name, array in arrays.items() if name.startswith(prefix)}


def prefixed(prefix: str, spec: Spec) -> Spec:
    """The same leaves, with `prefix` before each name."""
    return {prefix + name: leaf for name, leaf in spec.items()}
