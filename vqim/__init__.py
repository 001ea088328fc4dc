"""Vector-quantised image modelling on TPU, CUDA and CPU. `vqim.load` opens a trained run."""
from typing import Any


def load(path: str, **arguments: Any) -> Any:
    """Opens a trained run for use from Python; see `vqim.trained.load`."""
    from vqim import trained  # what it needs takes seconds to import

    return trained.load(path, **arguments)
