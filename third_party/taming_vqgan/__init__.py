"""The names of taming-transformers' VQGAN checkpoints, for a user who has one. See METADATA and README.md."""
from .weights import FILES, IGNORED, original_names, to_array

__all__ = ["FILES", "IGNORED", "original_names", "to_array"]
