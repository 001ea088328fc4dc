"""Traces some steps of a run for TensorBoard's profiler."""
import contextlib
import os

from absl import logging

from vqim.contracts.runtime import Runtime


class Profiler:
    """Traces the steps in a range, if this process makes all of them; warns if not.

    Args:
      runtime: the runtime that makes the steps; it traces itself.
      directory: a TensorBoard log directory for the trace.
      steps: the steps after step `steps.start`, up to step `steps.stop`; None for no trace.
    """

    def __init__(self, runtime: Runtime, directory: str | os.PathLike[str], steps: range | None):
        self._runtime, self._directory, self._steps = runtime, directory, steps
        self._trace = contextlib.ExitStack()
        self._has_not_begun = True

    def at(self, step: int) -> None:
        """Begins or ends the trace if it is time; to be called before each step, with the number of steps made."""
        if self._steps is None:
            return
        if step > self._steps.start and self._has_not_begun:
            logging.warning("No trace: this process begins at step %d, after step %d.", step, self._steps.start)
        if step == self._steps.start:
            logging.info("Tracing steps %d to %d into %s.", step + 1, self._steps.stop, self._directory)
            self._trace.enter_context(self._runtime.profile(self._directory))
        elif step == self._steps.stop:
            self.close()
        self._has_not_begun = False

    def close(self) -> None:
        """Ends the trace, if there is one."""
        self._trace.close()
