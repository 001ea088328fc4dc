"""A trace of some steps of a run, for TensorBoard's profiler."""
import contextlib
import os

from absl import logging

from vqim.contracts.runtime import Runtime


class Profiler:
    """Traces the steps of a range, as far as this process makes them.

    Args:
      runtime: what makes the steps, and knows how to trace itself.
      directory: where the trace goes, a TensorBoard log directory.
      steps: those after `steps.start` steps and up to `steps.stop`; None for no trace.
    """

    def __init__(self, runtime: Runtime, directory: str | os.PathLike[str], steps: range | None):
        self._runtime, self._directory, self._steps = runtime, directory, steps
        self._trace = contextlib.ExitStack()

    def at(self, step: int) -> None:
        """Begins or ends the trace where it is time; to be called with the number of steps made, before each."""
        if self._steps is None:
            return
        if step == self._steps.start:
            logging.info("Tracing steps %d to %d into %s.", step + 1, self._steps.stop, self._directory)
            self._trace.enter_context(self._runtime.profile(self._directory))
        elif step == self._steps.stop:
            self.close()

    def close(self) -> None:
        """Ends the trace, if there is one."""
        self._trace.close()
