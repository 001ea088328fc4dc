"""Where the arrays of a state live on a mesh: a table of rules, applied to parameters and optimizer state alike."""
import dataclasses
import re
from collections.abc import Mapping, Sequence

from vqim.state.init import Index
from vqim.state.leaf import Leaf

MESH_AXES = ("data", "fsdp", "tensor")

PartitionSpec = tuple[str | tuple[str, ...] | None, ...]
"""For each dimension of an array the mesh axis, or axes, over which it is cut; None where it is whole."""


_SLOT = re.compile(r"^optimizer/([^/]+)/[^/]+/")


@dataclasses.dataclass(frozen=True)
class Partition:
    """Rules from array names to mesh axes.

    A rule is (regular expression, {axis of the array: axis of the mesh}), such as
    ('attention/(query|key|value)/kernel', {'in': 'fsdp', 'out': 'tensor'}). The first rule whose expression is found
    in an array's name decides; an array that no rule matches is replicated. What an optimizer keeps of a parameter,
    `optimizer/<network>/<slot>/<path>`, goes by the parameter's name, `params/<network>/<path>`. Axes are named, not
    counted, so that moments, int8 scales and factored second moments, whose shapes lack some of the parameter's axes,
    lie where it lies. 'layers' stays whole.

    Attributes:
      rules: the table.
    """

    rules: Sequence[tuple[str, Mapping[str, str]]] = ()

    def __post_init__(self) -> None:
        for pattern, axes in self.rules:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"rules: expected regular expressions, got {pattern!r}: {error}") from error
            for axis, mesh_axis in axes.items():
                if mesh_axis not in MESH_AXES or axis == "layers":
                    raise ValueError(
                        f"rules: {pattern!r} maps {axis!r} to {mesh_axis!r}; expected an axis of the array other than "
                        f"'layers', mapped to one of {MESH_AXES}")

    def spec(self, name: str, leaf: Leaf, mesh_shape: Mapping[str, int]) -> PartitionSpec:
        """The mesh axis of each dimension of an array, None where it is not cut.

        Raises:
          ValueError: a dimension cannot be cut evenly, or two would be cut over one mesh axis; names the rule and
            the array.
        """
        for pattern, axes in self.rules:
            if not re.search(pattern, _SLOT.sub(r"params/\1/", name)):
                continue
            spec = tuple(axes.get(axis) for axis in leaf.axes)
            used = [mesh_axis for mesh_axis in spec if mesh_axis]
            if len(set(used)) < len(used):
                raise ValueError(
                    f"rule {pattern!r} cuts two dimensions of {name} {leaf.shape}, {leaf.axes}, over one mesh axis: "
                    f"expected a mesh axis of its own for each, got {dict(axes)}")
            for size, axis, mesh_axis in zip(leaf.shape, leaf.axes, spec, strict=True):
                if mesh_axis and size % mesh_shape[mesh_axis]:
                    raise ValueError(
                        f"rule {pattern!r} cuts axis {axis!r} of {name} {leaf.shape} over mesh axis {mesh_axis!r}, but "
                        f"{size} is not a multiple of {mesh_shape[mesh_axis]}: change the rule or the mesh")
            return spec
        return (None,) * len(leaf.shape)


def part_of(
    shape: Sequence[int], spec: PartitionSpec, mesh_shape: Mapping[str, int], position: Mapping[str, int],
) -> Index:
    """What one device holds of an array that is cut evenly.

    Args:
      shape: of the whole array.
      spec: how it is cut. A dimension that is cut over several mesh axes is cut over the first of them first.
      mesh_shape: the size of each mesh axis.
      position: the device's place on each mesh axis.
    """
    index = []
    for size, cut in zip(shape, spec, strict=True):
        number, count = 0, 1
        for axis in (cut,) if isinstance(cut, str) else cut or ():
            number, count = number * mesh_shape[axis] + position[axis], count * mesh_shape[axis]
        index.append(slice(size // count * number, size // count * (number + 1)))
    return tuple(index)
