"""Weights of torchvision's classifiers, read from a file that the user has. See METADATA and README.md."""
from .weights import find_weights, read_weights

__all__ = ["find_weights", "read_weights"]
