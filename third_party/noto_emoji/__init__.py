"""The embedded data set: 1,892 Noto Emoji pictures, 64x64, with nine class labels. See README.md, METADATA, NOTICE."""
from .dataset import find_dataset

__all__ = ["find_dataset"]
