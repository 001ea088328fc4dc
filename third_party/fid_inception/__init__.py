"""The weights of FID's Inception, read from a file that the user has. See METADATA and README.md."""
from .weights import CONVOLUTIONS, SHA256, find_weights, read_weights

__all__ = ["CONVOLUTIONS", "SHA256", "find_weights", "read_weights"]
