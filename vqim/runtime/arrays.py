"""Conversions between host tensors and NumPy arrays, bfloat16 included."""
import ml_dtypes
import numpy as np
import torch
from torch import Tensor


def to_tensor(array: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
    """A host tensor with a copy of a NumPy array's values, ml_dtypes' bfloat16 included."""
    if array.dtype == ml_dtypes.bfloat16:
        tensor = torch.from_numpy(np.array(array.view(np.uint16)).view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(np.array(array))
    return tensor if dtype is None else tensor.to(dtype)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A NumPy copy of a tensor; bfloat16 becomes that of ml_dtypes."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


def scalar(value: int | float) -> Tensor:
    """A host scalar: int32 for an int, float32 for a float."""
    return torch.tensor(value, dtype=torch.int32 if isinstance(value, int | np.integer) else torch.float32)
