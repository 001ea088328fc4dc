"""Modules that hold descriptions of arrays, and how they are called with real arrays.

A module is built once, on the meta device, and never owns an array. Its parameters and statistics give their shape,
initial value and axes. `arrays_spec` lists them, and a runtime fills them. `apply` calls a method of the module with
a dict of arrays in their place, as a pure function of (arrays, inputs, context).
"""
import dataclasses
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from vqim.state.init import Init, Normal, Uniform
from vqim.state.leaf import Leaf, Spec

P = ParamSpec("P")
T = TypeVar("T")

Places = dict[str, tuple[dict[str, Any], str]]
"""Where a module keeps each of its parameters and statistics: the dict of the part that has it, and the name there."""


class Parameter(nn.Parameter):
    """A parameter or a statistic without data, with its `Leaf`.

    Attributes:
      leaf: its shape, initial value and axes.
      trained: whether gradients change it; False for statistics.
    """

    leaf: Leaf
    trained: bool

    def __new__(cls, leaf: Leaf, trained: bool = True) -> "Parameter":
        parameter = super().__new__(
            cls, torch.empty(leaf.shape, dtype=leaf.dtype, device="meta"), requires_grad=trained)
        parameter.leaf, parameter.trained = leaf, trained
        return parameter


def parameter(shape: tuple[int, ...], init: Init, *axes: str) -> Parameter:
    """Declares a parameter; see `Leaf` for the words that `axes` may have."""
    return Parameter(Leaf(shape, init, axes))


def statistic(shape: tuple[int, ...], init: Init, *axes: str) -> Parameter:
    """Declares an array that gradients do not change: a running mean, an EMA codebook and its counts.

    It has no slots and no moving average. `Advancing.advance` gives its new values.
    """
    return Parameter(Leaf(shape, init, axes), trained=False)


def spec(module: nn.Module) -> Spec:
    """All parameters of a module by name, with slashes for dots."""
    return {name: value.leaf for name, value in _declared(module).items() if value.trained}


def statistics_spec(module: nn.Module) -> Spec:
    """All statistics of a module by name, with slashes for dots."""
    return {name: value.leaf for name, value in _declared(module).items() if not value.trained}


def arrays_spec(module: nn.Module) -> Spec:
    """Parameters and statistics: all arrays that a call of the module needs."""
    return spec(module) | statistics_spec(module)


def _declared(module: nn.Module) -> dict[str, Parameter]:
    declared: dict[str, Parameter] = {}
    for name, value in module.named_parameters():
        if not isinstance(value, Parameter):
            raise TypeError(f"{type(module).__name__}.{name} is a plain nn.Parameter: declare it with nn.parameter()")
        declared[name.replace(".", "/")] = value
    return declared


def apply(method: Callable[P, T], arrays: Mapping[str, Tensor], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls `module.method(*args, **kwargs)` with arrays for the module's parameters and statistics.

    Threads take turns, as a module has its arrays in one place.

    Args:
      method: a bound method of a module, such as `model.encode`.
      arrays: all arrays of that module, named as in `arrays_spec(module)`.

    Raises:
      RuntimeError: a name is missing or not expected.
    """
    module: nn.Module = method.__self__  # type: ignore[attr-defined]
    places = _places(module)
    if arrays.keys() != places.keys():
        missing, unknown = sorted(places.keys() - arrays.keys()), sorted(arrays.keys() - places.keys())
        raise RuntimeError(f"arrays must be those of {type(module).__name__}: missing {missing}, unexpected {unknown}")
    with _TURN:
        before = [held[name] for held, name in places.values()]
        try:
            for path, (held, name) in places.items():
                held[name] = arrays[path]
            result: T = _Method(module)(method.__name__, *args, **kwargs)
            return result
        finally:
            for (held, name), value in zip(places.values(), before, strict=True):
                held[name] = value


def present_arrays(module: nn.Module) -> dict[str, Any]:
    """The arrays that a module has at this moment, inside a call by `apply`, by name."""
    return {path: held[name] for path, (held, name) in _places(module).items()}


class _Method(nn.Module):
    """A call of any method of a module as a module's own call, which hooks see: `topology.named_modules` has one."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.module, name)(*args, **kwargs)


_TURN = threading.RLock()

_KNOWN: "weakref.WeakKeyDictionary[nn.Module, Places]" = weakref.WeakKeyDictionary()


def _places(module: nn.Module) -> Places:
    """The places of a module's arrays, looked up once: a step of a sampler applies a block for each of its layers.

    torch.func.functional_call does the same and took 0.67 ms a block, this 0.02 (one core of an AMD EPYC, 2026-11-27).
    """
    places = _KNOWN.get(module)
    if places is None:
        places = _KNOWN[module] = {
            f"{path}/{name}" if path else name: (part._parameters, name)
            for path, part in ((path.replace(".", "/"), part) for path, part in module.named_modules())
            for name, value in part._parameters.items() if value is not None}
    return places


def stack_parameters(block: nn.Module, num_layers: int) -> None:
    """Turns a block's parameters, in place, into those of `num_layers` such blocks: [layers, ...] each."""
    for module in block.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            assert isinstance(value, Parameter)
            leaf = value.leaf
            init = leaf.init
            if isinstance(init, Normal | Uniform):
                init = dataclasses.replace(init, num_stacked=init.num_stacked + 1)
            stacked = dataclasses.replace(
                leaf, shape=(num_layers, *leaf.shape), init=init, axes=("layers", *leaf.axes))
            setattr(module, name, Parameter(stacked, value.trained))
