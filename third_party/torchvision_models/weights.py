"""Finds and reads a file of weights such as torchvision's `resnet101-cd907fc2.pth` or `vgg16-397923af.pth`."""
import functools
import pathlib
import pickle
from collections.abc import Mapping

import numpy as np
import torch

_REMEDY = ("expected the state_dict of a torchvision {0}, as "
           "torchvision.models.{1}(weights='DEFAULT').state_dict() gives it")
_EXAMPLES = {"ResNet": "resnet101", "VGG16": "vgg16"}


def find_weights(path: str, network: str = "ResNet") -> str:
    """The path, if there is a file.

    Args:
      path: the file's path.
      network: 'ResNet' or 'VGG16', for the message.

    Raises:
      FileNotFoundError: there is none.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}: {_remedy(network)}, saved by torch.save")
    return path


@functools.lru_cache(maxsize=2)
def read_weights(path: str, network: str = "ResNet") -> Mapping[str, np.ndarray]:
    """Reads the file, once per process; it cannot run code (torch.load with weights_only).

    Args:
      path: what `find_weights` returned.
      network: as for `find_weights`.

    Returns:
      float32 arrays, not to be written to, by their names in the module; without the counters of batches that batch
      normalisation keeps and does not use.

    Raises:
      ValueError: the file holds something else.
    """
    remedy = _remedy(network)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as tensors ({str(error).splitlines()[0]}): {remedy}") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} holds a {type(tensors).__name__} that is no state_dict: {remedy}")
    arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()
              if not name.endswith("num_batches_tracked")}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _remedy(network: str) -> str:
    return _REMEDY.format(network, _EXAMPLES[network])
