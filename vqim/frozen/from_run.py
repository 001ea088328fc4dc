"""Trained networks from the checkpoints of another run."""
import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from vqim.checkpoint.errors import CheckpointError, NoCheckpointError
from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.reader import Checkpoint
from vqim.contracts.context import Context
from vqim.nn.module import apply, arrays_spec
from vqim.state import sections
from vqim.state.init import Index, full_index
from vqim.state.leaf import Spec, State


class FromRun:
    """A network that another run has trained, or has itself taken from a run; equal if run, name and shapes are.

    Args:
      model: the network, built as that run built it.
      run: that run's directory. Its newest checkpoint is read, but only when the arrays are needed: a run that
        continues from its own checkpoint has them there.
      network: its name in that run. If that run kept moving averages of the parameters, these are read.
      step: the checkpoint to read instead of the newest; 'latest_valid' is the newest that is whole.
    """

    def __init__(
        self, model: nn.Module, run: str, network: str = "tokenizer", step: int | Literal["latest_valid"] | None = None,
    ):
        self.model, self.run, self.network, self.step = model, run, network, step

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FromRun) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash((self.run, self.network))

    def __call__(self, arrays: State, *inputs: Tensor, context: Context) -> Any:
        """The network's forward pass."""
        return apply(self.model.forward, arrays, *inputs, context)

    def fingerprint(self, names: list[str]) -> str:
        """A hash of the names and values of some arrays."""
        leaves = arrays_spec(self.model)
        return fingerprint({name: self.read(name, leaves[name].shape, full_index(leaves[name].shape))
                            for name in names})

    def init_spec(self) -> Spec:
        """The network's arrays, filled from the checkpoint; each slice is read separately."""
        return {name: dataclasses.replace(leaf, init=_Read(self, name))
                for name, leaf in arrays_spec(self.model).items()}

    def check(self) -> None:
        """Raises what `read` would, without reading."""
        self._source  # noqa: B018  opened and compared when it is first looked at

    def read(self, name: str, shape: tuple[int, ...], index: Index) -> np.ndarray:
        """A slice of one array.

        Raises:
          NoCheckpointError: the run has no checkpoint.
          ValueError: the run has no such network, or one with other shapes.
        """
        checkpoint, names = self._source
        return checkpoint.read(names[name], index)

    def _identity(self) -> tuple[Any, ...]:
        return self.run, self.network, self.step, {name: leaf.shape for name, leaf in arrays_spec(self.model).items()}

    @functools.cached_property
    def _source(self) -> tuple[Checkpoint, dict[str, str]]:
        """The run's checkpoint, and the name of each of the network's arrays in it."""
        try:
            checkpoint = CheckpointManager(f"{self.run}/checkpoints").open(self.step)
        except NoCheckpointError:
            raise
        except CheckpointError as error:
            raise CheckpointError(f"{error}; in gin, frozen.FromRun.step = 'latest_valid'") from error
        names = names_in(checkpoint, self.network, arrays_spec(self.model))
        checkpoint.check({names[name]: (leaf.shape, np.dtype(np.float32))
                          for name, leaf in arrays_spec(self.model).items()})
        return checkpoint, names


def fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
    """A hash of the names and values of some arrays, in their order."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()[:16]


def names_in(checkpoint: Checkpoint, network: str, wanted: Spec) -> dict[str, str]:
    """The names of a network's arrays in a checkpoint: averages before parameters, its own before a frozen copy.

    An array that the checkpoint does not have gets the name that a parameter would have.
    """
    there = set(checkpoint.names())
    places = (sections.ema(network), sections.params(network), sections.statistics(network), sections.frozen(network))
    return {name: next((place + name for place in places if place + name in there), sections.params(network) + name)
            for name in wanted}


@dataclasses.dataclass(frozen=True)
class _Read:
    """An initial value read from a checkpoint."""

    source: FromRun
    array: str

    def __call__(self, name: str, shape: tuple[int, ...], seed: int, index: Index) -> np.ndarray:
        return self.source.read(self.array, shape, index)
