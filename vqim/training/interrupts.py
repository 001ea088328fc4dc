"""Ctrl-C and SIGTERM as a wish to stop after the current step."""
import signal
from types import FrameType, TracebackType

from absl import logging


class Interrupts:
    """While entered, SIGINT and SIGTERM set `requested`; a second one ends the process as it would have without."""

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        logging.warning("%s: saving and stopping after this step; once more stops at once.", self.requested)
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]
