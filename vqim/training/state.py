"""The training state: how it starts, is restored from a checkpoint, and is saved."""
import dataclasses
import functools
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from absl import logging

from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.reader import Checkpoint, NamedArrays
from vqim.checkpoint.store import HostArray
from vqim.contracts.placing import place
from vqim.contracts.runtime import Runtime
from vqim.runtime.arrays import to_numpy
from vqim.state.leaf import Spec, State
from vqim.training.start_from import StartFrom, started_spec


class NonFiniteError(RuntimeError):
    """A value in a step, or the result of a step, is not finite."""


@dataclasses.dataclass
class TrainState:
    """Everything that the rest of a run depends on, except its configuration and its data.

    Attributes:
      arrays: parameters, optimizer slots and flags by name, on the runtime's devices; steps update them in place.
      step: the number of updates made so far.
      seed: the seed of the run.
      origins: what `start_from` read when the run began; stored in every checkpoint.
    """

    arrays: State
    step: int
    seed: int
    origins: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def start(spec: Spec, seed: int, runtime: Runtime, sources: Sequence[StartFrom] = ()) -> TrainState:
    """A new state, with arrays from other runs where `sources` say so.

    Raises:
      StartFromError: see `vqim.training.start_from.started_spec`.
    """
    spec, origins = started_spec(spec, sources)
    return TrainState(place(spec, seed, runtime), 0, seed, origins)


def restore(spec: Spec, seed: int, runtime: Runtime, checkpoint: Checkpoint) -> TrainState:
    """The state in a checkpoint; leaves that checkpoints do not hold are filled again.

    Raises:
      ValueError: the checkpoint has other arrays, or was written with another seed.
    """
    if checkpoint.metadata["seed"] != seed:
        raise ValueError(
            f"seed must be {checkpoint.metadata['seed']}, the run's own, to go on from step {checkpoint.step}; "
            f"got {seed}")
    return TrainState(restore_arrays(spec, seed, runtime, checkpoint), checkpoint.step, seed,
                      list(checkpoint.metadata.get("origins", [])))


def restore_arrays(spec: Spec, seed: int, runtime: Runtime, checkpoint: NamedArrays) -> State:
    """The arrays in `spec`, which may be a part of the checkpoint's arrays."""
    checkpoint.check({name: (leaf.shape, _numpy_dtype(leaf.dtype)) for name, leaf in spec.items() if leaf.saved})
    saved = {name: runtime.place(name, leaf, functools.partial(checkpoint.read, name))
             for name, leaf in spec.items() if leaf.saved}
    return saved | place({name: leaf for name, leaf in spec.items() if not leaf.saved}, seed, runtime)


def save(
    state: TrainState, spec: Spec, manager: CheckpointManager, runtime: Runtime, *,
    data_position: Mapping[str, Any], config: str, metrics: Mapping[str, float], unmeasured: bool = False,
    prune: bool = True, data: Mapping[str, Any] | None = None,
) -> None:
    """Copies the state to the host and leaves the writing to the manager's thread.

    Args:
      state: the state with the arrays.
      spec: the arrays' description.
      manager: writes the checkpoint.
      runtime: copies the arrays to the host.
      data_position, config, metrics, prune: see `CheckpointManager.save`.
      data: what is known of the data (`data_identity.identity`).
      unmeasured: whether evaluators are due at this step, which have not run when it is saved.

    Raises:
      NonFiniteError: an array has a value that is not finite; nothing has been saved.
      CheckpointError: the save before this one failed.
    """
    # The copy may not begin while the last one is being written: a large run's host has no memory for two.
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
    manager.save(state.step, arrays, {"seed": state.seed, "git_commit": _git_commit(), "origins": state.origins,
                                      "unmeasured": unmeasured, **({"data": dict(data)} if data else {}),
                                      **runtime.describe()},
                 metrics=dict(metrics), config=config, data_position=data_position, prune=prune)


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    return to_numpy(torch.empty(0, dtype=dtype)).dtype


@functools.cache
def _git_commit() -> str | None:
    """The Git commit of the checkout that this code runs from; None outside a checkout."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        logging.info("git is not installed: checkpoints do not name the commit.")
        return None
    return result.stdout.strip() or None
