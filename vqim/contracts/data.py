"""What a run needs from its data: batches of images or of tokens.

    B batch of one process
"""
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

Batch = dict[str, np.ndarray]


class Loader(Protocol):
    """Endless training batches, with a position that can be saved and restored exactly.

    Attributes:
      num_skipped: corrupt examples met so far.
    """

    @property
    def num_skipped(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def position(self) -> dict[str, Any]:
        """The current position, as values that JSON can hold."""
        ...

    def restore(self, position: dict[str, Any]) -> None:
        """Continues from a position, which any number of processes may have saved."""
        ...

    def close(self) -> None:
        """Stops reading ahead."""
        ...


class Dataset(Protocol):
    """Images, or tokens of images, in two splits.

    Data are read only when they are needed. A data set of images knows `image_size` and `batch_like` without its
    data; a data set of tokens opens its cache for them.

    Attributes:
      image_size: height and width of the images, in pixels.
      class_names: names of the classes, in the order of the labels; empty without classes.
    """

    @property
    def image_size(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def num_classes(self) -> int: ...

    def num_examples(self, split: str) -> int:
        """The number of examples in 'train' or 'validation', over all processes."""
        ...

    def batch_like(self, batch_size: int) -> Batch:
        """Zeros with the shapes and dtypes of a batch; takes no memory."""
        ...

    def training(
        self, batch_size: int, seed: int, *, process_index: int = 0, process_count: int = 1,
    ) -> Loader:
        """Endless shuffled, augmented batches; `batch_size` is this process's part."""
        ...

    def evaluation(
        self, batch_size: int, *, split: str = "validation", process_index: int = 0, process_count: int = 1,
        first_batch: int = 0, num_examples: int | None = None,
    ) -> Iterable[Batch]:
        """One pass over a split, in its order; 'valid' is False where an example only fills a batch.

        With `first_batch`, the batches before it are left out, and not read. With `num_examples`, only so many are
        taken, evenly spaced over the split.
        """
        ...


def check_labelled_data(data: Dataset, num_classes: int, image_size: int) -> None:
    """Raises ValueError unless the data have this number of classes and images of this size."""
    if data.num_classes != num_classes:
        raise ValueError(f"num_classes must be the data's {data.num_classes}, got {num_classes}")
    if data.image_size != image_size:
        raise ValueError(f"image_size of the data must be {image_size}, got {data.image_size}")
