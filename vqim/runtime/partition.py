"""How a state's arrays are cut over a mesh: a table of rules for both parameters and optimizer state."""
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from vqim.state.init import Index
from vqim.state.leaf import Leaf

MESH_AXES = ("data", "fsdp", "tensor")

PartitionSpec = tuple[str | tuple[str, ...] | None, ...]
"""For each dimension of an array, the mesh axis, or axes, over which it is cut; None where it is not cut."""

Rule = tuple[str, Mapping[str, str | Sequence[str]]]
"""A rule of `Partition`: a regular expression for names, and the mesh axis or axes that cut each array axis."""

_SLOT = re.compile(r"^optimizer/([^/]+)/[^/]+/")


@dataclasses.dataclass(frozen=True)
class Partition:
    """Rules from array names to mesh axes.

    A rule is (regular expression, {axis of the array: axis of the mesh}), such as
    ('attention/(query|key|value)/kernel', {'in': 'fsdp', 'out': 'tensor'}); with several axes of the mesh, such as
    {'out': ('tensor', 'fsdp')}, an axis is cut over the first of them first. The first rule whose expression is found
    in an array's name is used; an array that no rule matches is replicated. For an optimizer's slot,
    `optimizer/<network>/<slot>/<path>`, the parameter's name, `params/<network>/<path>`, is used. Rules name axes
    rather than count them. So moments, int8 scales and factored second moments, which lack some of the parameter's
    axes, are cut like the parameter. 'layers' is never cut.

    Attributes:
      rules: the table.
    """

    rules: Sequence[Rule] = ()

    def __post_init__(self) -> None:
        for pattern, axes in self.rules:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"rules: expected regular expressions, got {pattern!r}: {error}") from error
            for axis, cut in axes.items():
                known = isinstance(cut, (str, tuple, list)) and set(mesh_axes(cut)) <= set(MESH_AXES)
                if not known or not cut or axis == "layers":
                    raise ValueError(
                        f"rules: {pattern!r} maps {axis!r} to {cut!r}; expected an axis of the array other than "
                        f"'layers', mapped to one or more of {MESH_AXES}")

    def spec(self, name: str, leaf: Leaf, mesh_shape: Mapping[str, int]) -> PartitionSpec:
        """The mesh axis, or axes, of each dimension of an array, None where it is not cut.

        Raises:
          ValueError: a dimension cannot be cut evenly, or a mesh axis would cut twice; names the rule and the array.
        """
        for pattern, axes in self.rules:
            if not re.search(pattern, _SLOT.sub(r"params/\1/", name)):
                continue
            cuts = [mesh_axes(axes.get(axis)) for axis in leaf.axes]
            used = [mesh_axis for cut in cuts for mesh_axis in cut]
            if len(set(used)) < len(used):
                raise ValueError(
                    f"rule {pattern!r} cuts {name} {leaf.shape}, {leaf.axes}, twice over one mesh axis: expected each "
                    f"mesh axis once, got {dict(axes)}")
            for size, axis, cut in zip(leaf.shape, leaf.axes, cuts, strict=True):
                count = math.prod(mesh_shape[mesh_axis] for mesh_axis in cut)
                if size % count:
                    raise ValueError(
                        f"rule {pattern!r} cuts axis {axis!r} of {name} {leaf.shape} over {axes[axis]!r} of the mesh, "
                        f"but {size} is not a multiple of {count}: change the rule or the mesh")
            return tuple((cut if len(cut) > 1 else cut[0]) if cut else None for cut in cuts)
        return (None,) * len(leaf.shape)


def mesh_axes(cut: str | Sequence[str] | None) -> tuple[str, ...]:
    """The mesh axes that cut one dimension, the outermost first."""
    if cut is None:
        return ()
    return (cut,) if isinstance(cut, str) else tuple(cut)


def part_of(
    shape: Sequence[int], spec: PartitionSpec, mesh_shape: Mapping[str, int], position: Mapping[str, int],
) -> Index:
    """The part of an evenly cut array that one device holds.

    Args:
      shape: the shape of the whole array.
      spec: how it is cut. A dimension that is cut over several mesh axes is cut over the first of them first.
      mesh_shape: the size of each mesh axis.
      position: the device's place on each mesh axis.
    """
    index = []
    for size, cut in zip(shape, spec, strict=True):
        number, count = 0, 1
        for axis in mesh_axes(cut):
            number, count = number * mesh_shape[axis] + position[axis], count * mesh_shape[axis]
        index.append(slice(size // count * number, size // count * (number + 1)))
    return tuple(index)
