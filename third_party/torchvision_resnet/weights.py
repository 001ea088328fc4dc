"""Finds and reads a file of weights such as torchvision's `resnet101-cd907fc2.pth`."""
import functools
import pathlib
import pickle
from collections.abc import Mapping

import numpy as np
import torch

_REMEDY = ("expected the state_dict of a torchvision ResNet, as "
           "torchvision.models.resnet101(weights='IMAGENET1K_V2').state_dict() gives it")


def find_weights(path: str) -> str:
    """The path, if there is a file.

    Raises:
      FileNotFoundError: there is none.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}: {_REMEDY}, saved by torch.save")
    return path


@functools.lru_cache(maxsize=1)
def read_weights(path: str) -> Mapping[str, np.ndarray]:
    """Reads the file, once per process; it cannot run code (torch.load with weights_only).

    Returns:
      float32 arrays, not to be written to, by their names in the module; without the counters of batches that batch
      normalisation keeps and does not use.

    Raises:
      ValueError: the file holds something else.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as tensors ({str(error).splitlines()[0]}): {_REMEDY}") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} holds a {type(tensors).__name__} that is no state_dict: {_REMEDY}")
    arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()
              if not name.endswith("num_batches_tracked")}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays
