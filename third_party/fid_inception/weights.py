"""Finds, checks and reads `pt_inception-2015-12-05-6726825d.pth`, and folds its batch normalisations.

    O output channels, I input channels, H W kernel height and width, Y classes
"""
import functools
import hashlib
import pathlib
import pickle
from collections.abc import Mapping

import numpy as np
import torch

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""The checksum of the file, under either of its names."""

_EPSILON = 1e-3  # of batch normalisation
_REMEDY = (
    "FID is measured in the Inception of 2015-12-05 alone, whose weights no package holds, since their licence is not "
    "stated. Download pt_inception-2015-12-05-6726825d.pth once (95.6 MB; release fid_weights of mseitzer/pytorch-fid "
    "on GitHub), or take torch-fidelity's weights-inception-2015-12-05-6726825d.pth, the same file, from "
    "~/.cache/torch/hub/checkpoints; and give its path. Without it there is proxy_fid, in EfficientNet-Lite0")


def _plan() -> dict[str, tuple[int, int, int, int]]:
    """Of each convolution: output channels, input channels, kernel height and width."""
    found = {"Conv2d_1a_3x3": (32, 3, 3, 3), "Conv2d_2a_3x3": (32, 32, 3, 3), "Conv2d_2b_3x3": (64, 32, 3, 3),
             "Conv2d_3b_1x1": (80, 64, 1, 1), "Conv2d_4a_3x3": (192, 80, 3, 3)}

    def block(name: str, **branches: tuple[int, int, int, int]) -> None:
        found.update({f"{name}.{branch}": sizes for branch, sizes in branches.items()})

    for name, width, pool in (("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)):
        block(name, branch1x1=(64, width, 1, 1), branch5x5_1=(48, width, 1, 1), branch5x5_2=(64, 48, 5, 5),
              branch3x3dbl_1=(64, width, 1, 1), branch3x3dbl_2=(96, 64, 3, 3), branch3x3dbl_3=(96, 96, 3, 3),
              branch_pool=(pool, width, 1, 1))
    block("Mixed_6a", branch3x3=(384, 288, 3, 3), branch3x3dbl_1=(64, 288, 1, 1), branch3x3dbl_2=(96, 64, 3, 3),
          branch3x3dbl_3=(96, 96, 3, 3))
    for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        block(name, branch1x1=(192, 768, 1, 1), branch7x7_1=(inner, 768, 1, 1), branch7x7_2=(inner, inner, 1, 7),
              branch7x7_3=(192, inner, 7, 1), branch7x7dbl_1=(inner, 768, 1, 1), branch7x7dbl_2=(inner, inner, 7, 1),
              branch7x7dbl_3=(inner, inner, 1, 7), branch7x7dbl_4=(inner, inner, 7, 1),
              branch7x7dbl_5=(192, inner, 1, 7), branch_pool=(192, 768, 1, 1))
    block("Mixed_7a", branch3x3_1=(192, 768, 1, 1), branch3x3_2=(320, 192, 3, 3), branch7x7x3_1=(192, 768, 1, 1),
          branch7x7x3_2=(192, 192, 1, 7), branch7x7x3_3=(192, 192, 7, 1), branch7x7x3_4=(192, 192, 3, 3))
    for name, width in (("Mixed_7b", 1280), ("Mixed_7c", 2048)):
        block(name, branch1x1=(320, width, 1, 1), branch3x3_1=(384, width, 1, 1), branch3x3_2a=(384, 384, 1, 3),
              branch3x3_2b=(384, 384, 3, 1), branch3x3dbl_1=(448, width, 1, 1), branch3x3dbl_2=(384, 448, 3, 3),
              branch3x3dbl_3a=(384, 384, 1, 3), branch3x3dbl_3b=(384, 384, 3, 1), branch_pool=(192, width, 1, 1))
    return found


CONVOLUTIONS = _plan()
"""Output channels, input channels, kernel height and width of each convolution, by its name in the file."""


def find_weights(path: str | None) -> str:
    """The path, if there is a file.

    Raises:
      FileNotFoundError: there is none, or no path is given; the message says which file it is and how to get it.
    """
    if not path or not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"weights_path: there is no file {path or '(no path is given)'}. {_REMEDY}")
    return path


@functools.lru_cache(maxsize=1)
def read_weights(path: str, sha256: str = SHA256) -> Mapping[str, np.ndarray]:
    """Checks and reads the file, once per process; it cannot run code (torch.load with weights_only).

    Args:
      path: what `find_weights` returned.
      sha256: the checksum that the file must have; another one than FID's is for tests of the code alone.

    Returns:
      float32 arrays, not to be written to: `{name}/kernel_OIHW` and `{name}/bias_O` of each of `CONVOLUTIONS`, and
      `classifier/kernel_IY`. The classifier's bias is left out, as it is in the graph that scores images.

    Raises:
      ValueError: the file is another one.
    """
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"weights_path: {path} has the sha256 {found[:16]}..., FID's Inception has {sha256[:16]}...; "
                         f"a FID in another network is another number. {_REMEDY}")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as tensors ({str(error).splitlines()[0]}). {_REMEDY}") from error
    weights = {}
    for name in CONVOLUTIONS:
        gain_O, bias_O, mean_O, variance_O = (
            tensors[f"{name}.bn.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var"))
        scale_O = gain_O / torch.sqrt(variance_O + _EPSILON)
        weights[f"{name}/kernel_OIHW"] = tensors[f"{name}.conv.weight"].double() * scale_O[:, None, None, None]
        weights[f"{name}/bias_O"] = bias_O - mean_O * scale_O
    weights["classifier/kernel_IY"] = tensors["fc.weight"].T
    arrays = {name: np.ascontiguousarray(tensor.numpy(), np.float32) for name, tensor in weights.items()}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays
