"""torch_xla's counters (compilations, transfers, operations that fell back to the CPU) and its traces."""
import contextlib
import os
from collections.abc import Iterator

import torch_xla.core.xla_model as xm
import torch_xla.debug.metrics as metrics
import torch_xla.debug.profiler as profiler
from absl import logging

_NANOSECONDS = 1e9


class XlaCounters:
    """Reads the counters since the process began, and warns once about each operation that has fallen back."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def read(self) -> dict[str, float]:
        """The counters by their names in the summaries; see docs/tpu.md."""
        fallbacks = {name: metrics.counter_value(name) for name in metrics.counter_names() if name.startswith("aten::")}
        for name in sorted(fallbacks.keys() - self._warned):
            logging.warning("%s is not an XLA operation here: it runs on the CPU, and every step waits for it.", name)
        self._warned |= fallbacks.keys()
        # Each is (number of samples, their sum).
        compile_time, to_device, from_device, bytes_to_device, bytes_from_device = (
            metrics.metric_data(name)[:2] if name in metrics.metric_names() else (0, 0.0) for name in (
                "CompileTime", "TransferToDeviceTime", "TransferFromDeviceTime", "OutboundData", "InboundData"))
        return {
            "xla/compilations": float(compile_time[0]),
            "xla/compile_seconds": compile_time[1] / _NANOSECONDS,
            "xla/transfers_to_device": float(to_device[0]),
            "xla/transfers_from_device": float(from_device[0]),
            "xla/bytes_to_device": bytes_to_device[1],
            "xla/bytes_from_device": bytes_from_device[1],
            "xla/fallbacks": float(sum(fallbacks.values())),
        }


@contextlib.contextmanager
def trace(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Traces what devices begin and end inside the context: directory/plugins/profile/<time>/<host>.xplane.pb."""
    xm.wait_device_ops()
    profiler.start_trace(directory)
    try:
        yield
        xm.wait_device_ops()
    finally:
        profiler.stop_trace()
