"""The training state: how it begins, comes back from a checkpoint, and gets into one."""
import dataclasses
import functools
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from absl import logging

from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.reader import Checkpoint
from vqim.checkpoint.store import HostArray
from vqim.runtime.runtime import Runtime, to_numpy
from vqim.state.init import Index
from vqim.state.leaf import Leaf, Spec, State


class NonFiniteError(RuntimeError):
    """A step met, or made, a value that is not finite."""


@dataclasses.dataclass
class TrainState:
    """Everything that the rest of a run depends on, but for its configuration and its data.

    Attributes:
      arrays: parameters, optimizer slots and flags by name, on the runtime's devices; steps update them in place.
      step: updates made so far.
      seed: of the run.
    """

    arrays: State
    step: int
    seed: int


def start(spec: Spec, seed: int, runtime: Runtime) -> TrainState:
    """A fresh state."""
    return TrainState({name: _initial(name, leaf, seed, runtime) for name, leaf in spec.items()}, 0, seed)


def restore(spec: Spec, seed: int, runtime: Runtime, checkpoint: Checkpoint) -> TrainState:
    """The state of a checkpoint; leaves that checkpoints do not hold are filled anew.

    Raises:
      ValueError: the checkpoint has other arrays, or was made from another seed.
    """
    if checkpoint.metadata["seed"] != seed:
        raise ValueError(
            f"seed must be {checkpoint.metadata['seed']}, the run's own, to go on from step {checkpoint.step}; "
            f"got {seed}")
    return TrainState(restore_arrays(spec, seed, runtime, checkpoint), checkpoint.step, seed)


def restore_arrays(spec: Spec, seed: int, runtime: Runtime, checkpoint: Checkpoint) -> State:
    """The arrays of `spec`, which may be a part of what the checkpoint holds."""
    checkpoint.check({name: (leaf.shape, _numpy_dtype(leaf.dtype)) for name, leaf in spec.items() if leaf.saved})
    return {
        name: runtime.place(name, leaf, functools.partial(checkpoint.read, name)) if leaf.saved
        else _initial(name, leaf, seed, runtime)
        for name, leaf in spec.items()}


def save(
    state: TrainState, spec: Spec, manager: CheckpointManager, runtime: Runtime, *,
    data_position: Mapping[str, Any], config: str, metrics: Mapping[str, float],
) -> None:
    """Copies the state to the host and leaves the writing to the manager's thread.

    Raises:
      NonFiniteError: an array has a value that is not finite; nothing has been saved.
      CheckpointError: the save before this one failed.
    """
    # The copy may not begin while the last one is being written: two at a time would not fit a host of a large run.
    manager.wait()
    arrays = {}
    for name, leaf in spec.items():
        if leaf.saved:
            shards = runtime.shards(state.arrays[name])
            arrays[name] = HostArray(shards.shape, shards.dtype, shards.parts)
    bad = [name for name, array in arrays.items() if not all(np.isfinite(part).all() for _, part in array.shards)]
    if bad:
        more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
        raise NonFiniteError(
            f"after {state.step} steps the state is not finite in {', '.join(bad[:8])}{more}, though losses and "
            "gradients were: the last update made it so. It is not saved, older checkpoints are whole. Look at the "
            "optimizer and its settings")
    manager.save(state.step, arrays, {"seed": state.seed, "git_commit": _git_commit(), **runtime.describe()},
                 metrics=dict(metrics), config=config, data_position=data_position)


def _initial(name: str, leaf: Leaf, seed: int, runtime: Runtime) -> torch.Tensor:
    def fill(index: Index) -> np.ndarray:
        return leaf.init(name, leaf.shape, seed, index)

    return runtime.place(name, leaf, fill)


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    return to_numpy(torch.empty(0, dtype=dtype)).dtype


@functools.cache
def _git_commit() -> str | None:
    """The commit of the checkout that this code runs from; None outside of one."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        logging.info("git is not installed: checkpoints do not name the commit.")
        return None
    return result.stdout.strip() or None
