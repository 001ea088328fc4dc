"""Reads parameters from other people's `torch.save` files, without running code from the files.

Such files are pickles, which may call any function. torch.load with weights_only allows only tensors and plain
containers. But other projects' checkpoints also name classes (callbacks, hyper-parameters, whole modules). Here a
`_Placeholder` replaces each of them; it stores its arguments and does nothing else.
"""
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqim.registry.config import ConfigError
from vqim.state.leaf import Spec


def read_weights(path: str) -> dict[str, np.ndarray]:
    """All arrays in a file by name, floating-point ones in float32.

    Args:
      path: a file that holds a state_dict, a checkpoint with a `state_dict` in it, or a pickled module.

    Raises:
      ConfigError: there is no such file, or it has no arrays.
    """
    if not Path(path).is_file():
        raise ConfigError(f"--weights must be a file, got {path}")
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Placeholder, name) for name in classes]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--weights must be files of torch.save (PyTorch 1.6 or newer), {path} cannot be read: {_reason(error)}. "
            "Where you trust the file, load it with PyTorch, save the module's state_dict() by torch.save, and give "
            "that file") from error
    weights = {name: _to_array(tensor) for name, tensor in _tensors(content)}
    if not weights:
        raise ConfigError(f"--weights must be files with a state_dict or a module in it, {path} has neither")
    return weights


def convert(weights: Mapping[str, np.ndarray], leaves: Spec, adapter: ModuleType) -> dict[str, np.ndarray]:
    """A tokenizer's parameters, converted from another project's arrays.

    Args:
      weights: the arrays, by the adapter's names for them.
      leaves: the spec of the parameters.
      adapter: a package in third_party with `original_names`, `to_array` and `IGNORED`.

    Raises:
      ConfigError: arrays are missing, left over, or have other shapes; the message lists them all.
    """
    originals = adapter.original_names(leaves)
    used = {name for names in originals.values() for name in names}
    wrong = [f"{name}: not in the file, expected {' and '.join(missing)}"
             for name, names in originals.items() if (missing := [part for part in names if part not in weights])]
    wrong += [f"{name}{list(weights[name].shape)}: in the file, and no parameter here"
              for name in weights if name not in used and not name.startswith(adapter.IGNORED)]
    params = {}
    for name, leaf in leaves.items():
        parts = [weights[part] for part in originals[name] if part in weights]
        if len(parts) < len(originals[name]):
            continue
        try:
            array = adapter.to_array(name, *parts)
            if array.shape != leaf.shape:
                raise ValueError(f"expected {list(leaf.shape)}, got {list(array.shape)}")
        except ValueError as error:
            wrong.append(f"{name}, made of {' and '.join(originals[name])}: {error}")
            continue
        params[name] = np.ascontiguousarray(array, np.float32)
    if wrong:
        more = f"\n... and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise ConfigError("the weights must be those of the gin file's tokenizer:\n" + "\n".join(wrong[:20]) + more)
    return params


def _reason(error: Exception) -> str:
    """The reason in PyTorch's message, without its advice to read the file without checks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "weights_only" not in line), lines[0] if lines else repr(error)).rstrip(".")


class _Placeholder(dict):
    """An instance of any class in a pickle: takes all arguments and items, and keeps the state that `pickle` gives it.

    Its base is dict, since some of the classes are dicts.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors in a state_dict, a checkpoint or a module."""
    if isinstance(content, _Placeholder):
        yield from _module_tensors(content, "")
    elif isinstance(content, Mapping):
        inner = content.get("state_dict", content)
        yield from ((name, tensor) for name, tensor in inner.items() if isinstance(tensor, Tensor))


def _module_tensors(module: _Placeholder, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a pickled module, named as in its `state_dict`."""
    for group in ("_parameters", "_buffers"):
        for name, tensor in module.__dict__.get(group, {}).items():
            if isinstance(tensor, Tensor):
                yield prefix + name, tensor
    for name, child in module.__dict__.get("_modules", {}).items():
        if isinstance(child, _Placeholder):
            yield from _module_tensors(child, f"{prefix}{name}.")


def _to_array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
