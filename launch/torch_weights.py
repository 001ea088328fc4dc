"""Parameters from files of `torch.save` that others have made, without running what the files say.

Such files are pickles, which may call any function. torch.load with weights_only admits tensors and plain containers;
the checkpoints of other projects also name classes (callbacks, hyper-parameters, whole modules), for which a
`_Placeholder` stands here that remembers and does nothing.
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
    """All arrays of a file by name, floating-point ones in float32.

    Args:
      path: a file that holds a state_dict, a checkpoint with a `state_dict` in it, or a pickled module.

    Raises:
      ConfigError: there is no such file, or none with arrays in it.
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
    """The parameters of a tokenizer, made of another project's arrays.

    Args:
      weights: the arrays, by the adapter's names for them.
      leaves: the parameters.
      adapter: a folder of third_party with `original_names`, `to_array` and `IGNORED`.

    Raises:
      ConfigError: arrays are missing, left over, or of other shapes; all of them are listed.
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
    """What is wrong, of a message of PyTorch's that begins with advice to read the file without its checks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "weights_only" not in line), lines[0] if lines else repr(error)).rstrip(".")


class _Placeholder(dict):
    """An instance of any class of a pickle: takes all arguments and items, and keeps what `pickle` gives as its state.

    Some of the classes are dicts, hence the base.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a state_dict, of a checkpoint's, or of a module."""
    if isinstance(content, _Placeholder):
        yield from _module_tensors(content, "")
    elif isinstance(content, Mapping):
        inner = content.get("state_dict", content)
        yield from ((name, tensor) for name, tensor in inner.items() if isinstance(tensor, Tensor))


def _module_tensors(module: _Placeholder, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a pickled module, named as `state_dict` names them."""
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
