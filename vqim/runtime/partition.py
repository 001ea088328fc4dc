"""Where the arrays of a state live on a mesh: a table of rules, applied to parameters and optimizer state alike."""
import dataclasses
import re
from collections.abc import Mapping, Sequence

from vqim.state.leaf import Leaf

MESH_AXES = ("data", "fsdp", "tensor")

PartitionSpec = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Partition:
    """Rules from array names to mesh axes.

    A rule is (regular expression, {axis of the array: axis of the mesh}), such as
    ('attention/(query|key|value)/kernel', {'in': 'fsdp', 'out': 'tensor'}). The first rule whose expression is found
    in an array's name decides; an array that no rule matches is replicated. Axes are named, not counted, so that a
    rule for a parameter also places its moments, its int8 scales and its factored second moments, whose names end
    like the parameter's and whose shapes lack some of its axes. 'layers' stays whole.

    Attributes:
      rules: the table.
    """

    rules: Sequence[tuple[str, Mapping[str, str]]] = ()

    def __post_init__(self) -> None:
        for pattern, axes in self.rules:
            re.compile(pattern)
            for axis, mesh_axis in axes.items():
                if mesh_axis not in MESH_AXES or axis == "layers":
                    raise ValueError(
                        f"rules: {pattern!r} maps {axis!r} to {mesh_axis!r}; expected an axis of the array other than "
                        f"'layers', mapped to one of {MESH_AXES}")

    def spec(self, name: str, leaf: Leaf, mesh_shape: Mapping[str, int]) -> PartitionSpec:
        """The mesh axis of each dimension of an array, None where it is not cut.

        Raises:
          ValueError: a dimension cannot be cut evenly; names the rule and the array.
        """
        for pattern, axes in self.rules:
            if not re.search(pattern, name):
                continue
            spec = tuple(axes.get(axis) for axis in leaf.axes)
            for size, axis, mesh_axis in zip(leaf.shape, leaf.axes, spec, strict=True):
                if mesh_axis and size % mesh_shape[mesh_axis]:
                    raise ValueError(
                        f"rule {pattern!r} cuts axis {axis!r} of {name} {leaf.shape} over mesh axis {mesh_axis!r}, but "
                        f"{size} is not a multiple of {mesh_shape[mesh_axis]}: change the rule or the mesh")
            return spec
        return (None,) * len(leaf.shape)
