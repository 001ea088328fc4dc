"""Modules that hold descriptions of parameters, and how they are called with actual arrays.

A module is built once, on the meta device, and never owns an array. Its parameters say their shape, initial
value and axes; `spec` lists them, a runtime fills them, and `apply` calls a method of the module with a dict
of arrays in their place: a pure function of (parameters, inputs, context).
"""
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vqim.state.init import Init, Normal, Uniform
from vqim.state.leaf import Leaf, Spec


class Parameter(nn.Parameter):
    """A parameter without data that knows its `Leaf`."""

    leaf: Leaf

    def __new__(cls, leaf: Leaf) -> "Parameter":
        parameter = super().__new__(cls, torch.empty(leaf.shape, dtype=leaf.dtype, device="meta"))
        parameter.leaf = leaf
        return parameter


def parameter(shape: tuple[int, ...], init: Init, *axes: str) -> Parameter:
    """Declares a parameter; see `Leaf` for the words that `axes` may have."""
    return Parameter(Leaf(shape, init, axes))


def spec(module: nn.Module) -> Spec:
    """All parameters of a module by name, with slashes for dots."""
    leaves: Spec = {}
    for name, value in module.named_parameters():
        if not isinstance(value, Parameter):
            raise TypeError(f"{type(module).__name__}.{name} is a plain nn.Parameter: declare it with nn.parameter()")
        leaves[name.replace(".", "/")] = value.leaf
    return leaves


def count_parameters(module: nn.Module) -> int:
    """Number of elements of all parameters of a module."""
    return sum(leaf.size for leaf in spec(module).values())


def apply(method: Callable[..., Any], params: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """Calls `module.method(*args, **kwargs)` with arrays for the module's parameters.

    Args:
      method: a bound method of a module, such as `model.encode`.
      params: every parameter of that module, named as in `spec(module)`.

    Raises:
      RuntimeError: names that are missing or not expected.
    """
    module: nn.Module = method.__self__  # type: ignore[attr-defined]
    named = {f"module.{name.replace('/', '.')}": array for name, array in params.items()}
    return torch.func.functional_call(
        _Method(module), named, (method.__name__, *args), kwargs, tie_weights=False, strict=True)


class _Method(nn.Module):
    """Makes any method of a module callable by torch.func.functional_call, which knows `forward` alone."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.module, name)(*args, **kwargs)


def stack_parameters(block: nn.Module, num_layers: int) -> None:
    """Turns a block's parameters, in place, into those of `num_layers` such blocks: [layers, ...] each."""
    for module in block.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            assert isinstance(value, Parameter)
            leaf = value.leaf
            init = leaf.init
            if isinstance(init, Normal | Uniform):
                init = dataclasses.replace(init, num_stacked=init.num_stacked + 1)
            setattr(module, name, Parameter(dataclasses.replace(
                leaf, shape=(num_layers, *leaf.shape), init=init, axes=("layers", *leaf.axes))))
