"""`Images`: batches of square images from a source, for training and for evaluation.

    B batch per process, H and W height and width
"""
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from vqim.contracts.data import Batch
from vqim.data.decode import CorruptImageError, decode
from vqim.data.faults import CorruptRecords
from vqim.data.loader import Evaluation, Loader
from vqim.data.order import augmentation_rng, stream_key
from vqim.data.source import SPLITS, Source, SourceFactory, check_example, check_split, counted_classes
from vqim.data.transforms import CenterCrop, RandomCrop, Transform

MAX_THREADS = 512


class Images:
    """A data set of images.

    Batches are `{"images": uint8 [B, H, W, 3], "labels": int32 [B], "valid": bool [B]}` with H = W = `image_size`;
    labels are -1 if the source has no classes. Corrupt images are skipped. In training, the next image in the source
    replaces one, with the same augmentation draws, so that nothing else changes. In evaluation, its place is not
    `valid`.

    Attributes:
      image_size: height and width of the images in pixels.
    """

    def __init__(
        self, source: SourceFactory, image_size: int,
        training_transform: Transform | None = None, evaluation_transform: Transform | None = None,
        max_corrupt_fraction: float = 0.05, num_threads: int = 2,
    ):
        """Keeps the settings; both splits are opened when they are first needed.

        Args:
          source: opens a split, called with `split="train"` and with `split="validation"`.
          image_size: height and width of the images in pixels.
          training_transform: crop, resize and flip for training; by default `RandomCrop()`.
          evaluation_transform: the same for evaluation; by default `CenterCrop()`.
          max_corrupt_fraction: a share in [0, 1); if more of a split's images are corrupt, the run stops.
          num_threads: the number of batches that are decoded at the same time.

        Raises:
          ValueError: an argument is out of range. Methods that need the splits also raise the source's errors, and
            ValueError if the splits have different classes.
        """
        if not callable(source):
            raise ValueError("source: expected what opens a split, such as @data.Emoji without parentheses, "
                             f"got {source!r}")
        if not isinstance(image_size, int) or image_size < 1:
            raise ValueError(f"image_size: expected an integer >= 1, got {image_size!r}")
        if not 0 <= max_corrupt_fraction < 1:
            raise ValueError(f"max_corrupt_fraction: expected a number in [0, 1), got {max_corrupt_fraction}")
        if not isinstance(num_threads, int) or not 1 <= num_threads <= MAX_THREADS:
            raise ValueError(f"num_threads: expected an integer from 1 to {MAX_THREADS}, got {num_threads!r}")
        self._open, self.image_size = source, image_size
        self._training_transform = training_transform or RandomCrop()
        self._evaluation_transform = evaluation_transform or CenterCrop()
        self._num_threads, self._max_corrupt_fraction = num_threads, max_corrupt_fraction

    def open_within(self, context: Callable[[], AbstractContextManager[None]]) -> None:
        """Opens the sources, when they are needed, in a context: one in which their configuration is in force."""
        inner = self._open

        def open_source(*, split: str) -> Source:
            with context():
                return inner(split=split)

        self._open = open_source

    @functools.cached_property
    def _sources(self) -> dict[str, Source]:
        """Both splits, opened."""
        sources = {split: self._open(split=split) for split in SPLITS}
        classes = {split: tuple(opened.class_names) for split, opened in sources.items()}
        if classes["train"] != classes["validation"]:
            raise ValueError(f"source: expected the same classes in both splits, got {classes['train']} for training "
                             f"and {classes['validation']} for validation")
        for opened in sources.values():
            if len(opened):
                check_example(opened[0], len(opened.class_names))
        return sources

    def fingerprint_of(self, split: str) -> str | None:
        """Changes when the examples of a split do; None if the source does not tell."""
        fingerprint = getattr(self._sources[split], "fingerprint", None)
        return fingerprint() if fingerprint is not None else None

    def describe(self) -> list[str]:
        """Counts and classes of the splits, and what of the files is ignored, a line for each."""
        lines = []
        for split, source in self._sources.items():
            classes = counted_classes(len(self.class_names))
            if self.class_names:
                classes += f" ({shortened(self.class_names)})"
            lines.append(f"{split}: {len(source):,} images, {classes}")
            lines += [f"{split}: ignored: {count:,} {what}" for what, count in getattr(source, "ignored", {}).items()]
        return lines

    @functools.cached_property
    def _corrupt(self) -> dict[str, CorruptRecords]:
        """The images that could not be decoded, by split."""
        return {split: CorruptRecords(len(opened), self._max_corrupt_fraction)
                for split, opened in self._sources.items()}

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels; empty without classes."""
        return tuple(self._sources["train"].class_names)

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 without classes."""
        return len(self.class_names)

    @property
    def evaluation_crop(self) -> str:
        """How images are cropped and resized for evaluation, as a result's protocol says it."""
        return repr(self._evaluation_transform)

    def num_examples(self, split: str) -> int:
        """The number of images in one split, over all processes."""
        check_split(split)
        return len(self._sources[split])

    def batch_like(self, batch_size: int) -> Batch:
        """See `vqim.contracts.data.Dataset`."""
        size = self.image_size
        shapes = {"images": ((size, size, 3), np.uint8), "labels": ((), np.int32), "valid": ((), bool)}
        return {name: np.broadcast_to(np.zeros((), dtype), (batch_size, *shape))
                for name, (shape, dtype) in shapes.items()}

    def prepare(self, image_HWC: np.ndarray) -> np.ndarray:
        """Transforms an image of any size as for evaluation: uint8 [image_size, image_size, 3]."""
        return self._evaluation_transform(image_HWC, self.image_size, np.random.default_rng(0))

    def training(self, batch_size: int, seed: int, *, process_index: int = 0, process_count: int = 1) -> Loader:
        """Endless shuffled, augmented batches of the training split; `batch_size` is this process's part."""
        reader = _Reader(self._sources["train"], self._training_transform, self.image_size, seed,
                         self._corrupt["train"], replace_corrupt=True)
        return Loader(reader, len(self._sources["train"]), batch_size, seed, process_index=process_index,
                      process_count=process_count, num_threads=self._num_threads, corrupt=self._corrupt["train"])

    def evaluation(
        self, batch_size: int, *, split: str = "validation", process_index: int = 0, process_count: int = 1,
        first_batch: int = 0, num_examples: int | None = None,
    ) -> Evaluation:
        """One pass over a split in the source's order, with `evaluation_transform`; see `Dataset.evaluation`."""
        check_split(split)
        return self._pass(split, self._evaluation_transform, 0, batch_size, 1, process_index, process_count,
                          first_batch, num_examples)

    def views(
        self, batch_size: int, seed: int, num_views: int, *,
        split: str = "train", process_index: int = 0, process_count: int = 1,
    ) -> Evaluation:
        """`num_views` passes over a split in the source's order, augmented as for training, differently in each pass.

        A token cache is made from these.
        """
        check_split(split)
        return self._pass(split, self._training_transform, seed, batch_size, num_views, process_index, process_count)

    def _pass(
        self, split: str, transform: Transform, seed: int, batch_size: int, num_epochs: int,
        process_index: int, process_count: int, first_batch: int = 0, num_chosen: int | None = None,
    ) -> Evaluation:
        reader = _Reader(self._sources[split], transform, self.image_size, seed, self._corrupt[split],
                         replace_corrupt=False)
        return Evaluation(reader, len(self._sources[split]), batch_size, num_epochs=num_epochs,
                          process_index=process_index, process_count=process_count, num_threads=self._num_threads,
                          corrupt=self._corrupt[split], first_batch=first_batch, num_chosen=num_chosen)


def shortened(names: Sequence[str], most: int = 8) -> str:
    """Names for a message, the first few of them."""
    return ", ".join(names[:most]) + (f", ... and {len(names) - most} more" if len(names) > most else "")


class _Reader:
    """Reads a batch of images: a `ReadBatch`."""

    def __init__(
        self, source: Source, transform: Transform, image_size: int, seed: int, corrupt: CorruptRecords, *,
        replace_corrupt: bool,
    ):
        self._source = source
        self._transform = transform
        self._image_size = image_size
        self._key = stream_key(seed, "augmentation")
        self._corrupt = corrupt
        self._replace_corrupt = replace_corrupt

    def __call__(self, epochs_B: np.ndarray, records_B: np.ndarray) -> Batch:
        images_BHWC = np.zeros((len(records_B), self._image_size, self._image_size, 3), np.uint8)
        labels_B = np.zeros(len(records_B), np.int32)
        valid_B = np.zeros(len(records_B), bool)
        for row, (epoch, record) in enumerate(zip(epochs_B.tolist(), records_B.tolist(), strict=True)):
            found = self._read_decodable(record)
            if found is not None:
                image_HWC, label = found
                rng = augmentation_rng(self._key, epoch, record)
                images_BHWC[row] = self._transform(image_HWC, self._image_size, rng)
                labels_B[row] = label
                valid_B[row] = True
        return {"images": images_BHWC, "labels": labels_B, "valid": valid_B}

    def _read_decodable(self, record: int) -> tuple[np.ndarray, int] | None:
        """The image and label of a record. If it is corrupt: those of the next good record, or None."""
        while True:  # this ends, since `CorruptRecords` raises before all records are corrupt
            if not self._corrupt.known(record):
                example = self._source[record]
                check_example(example, len(self._source.class_names))
                try:
                    image = example.image
                    return (decode(image) if isinstance(image, bytes) else image), example.label
                except CorruptImageError as error:
                    self._corrupt.add(record, example.name, error)
            if not self._replace_corrupt:
                return None
            record = (record + 1) % len(self._source)
