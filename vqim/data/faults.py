"""Corrupt images: each causes one warning and is counted, and too many of them stop the run."""
import logging
import threading

logger = logging.getLogger(__name__)


class TooManyCorruptError(RuntimeError):
    """More images in a data set are corrupt than its user allows."""


class WrongExampleError(ValueError):
    """A source has given what is no image with a label of its classes."""


class CorruptRecords:
    """The images in one split that could not be decoded so far. Loader threads share this object."""

    def __init__(self, num_examples: int, max_fraction: float):
        """Allows at most `max_fraction` of `num_examples` images to be corrupt."""
        self._num_examples = num_examples
        self._max_fraction = max_fraction
        self._records: set[int] = set()
        self._last = ""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._records)

    def known(self, record: int) -> bool:
        """Whether this image is already known to be corrupt.

        Raises:
          TooManyCorruptError: it is, and another thread has meanwhile found more corrupt images than are allowed.
        """
        with self._lock:
            if record in self._records:
                self._check()
                return True
            return False

    def add(self, record: int, name: str, reason: Exception) -> None:
        """Records a corrupt image, and warns if it is new.

        Raises:
          TooManyCorruptError: with this image there are more than allowed.
        """
        with self._lock:
            if record not in self._records:
                self._records.add(record)
                self._last = f"{name} ({reason})"
                logger.warning("skipping a corrupt image: %s", self._last)
            self._check()

    def _check(self) -> None:
        if len(self._records) > self._max_fraction * self._num_examples:
            raise TooManyCorruptError(
                f"{len(self._records)} of {self._num_examples} images are corrupt so far, more than "
                f"max_corrupt_fraction={self._max_fraction} allows; the last one is {self._last}. Repair or remove "
                "the files that the warnings name, or raise max_corrupt_fraction.")
