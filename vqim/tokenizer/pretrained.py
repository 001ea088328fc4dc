"""Trained networks, taken from the checkpoints of another run."""
import dataclasses
import functools
import hashlib
import re

import numpy as np
from torch import nn

from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.reader import Checkpoint
from vqim.nn.module import spec
from vqim.state.init import Index, full_index
from vqim.state.leaf import Spec


class Pretrained:
    """A network whose parameters another run has trained.

    Args:
      model: the network, built as that run built it.
      run: that run's directory; its newest checkpoint is read, and only when the parameters are needed: a run that
        goes on from a checkpoint of its own has them in there.
      prefix: of the parameters' names in that run, such as 'params/tokenizer/'. Where that run kept their average,
        under 'ema/' in place of 'params/', it is the average that is read.
    """

    def __init__(self, model: nn.Module, run: str, prefix: str = "params/tokenizer/"):
        if not prefix.endswith("/"):
            raise ValueError(f"prefix must end with '/', such as 'params/tokenizer/'; got {prefix!r}")
        self.model, self.run, self.prefix = model, run, prefix

    def fingerprint(self) -> str:
        """A hash of what decides about tokens: the values of all parameters but the decoder's."""
        digest = hashlib.sha256()
        for name, leaf in sorted(spec(self.model).items()):
            if not name.startswith("decoder/"):
                digest.update(name.encode() + self.read(name, leaf.shape, full_index(leaf.shape)).tobytes())
        return digest.hexdigest()[:16]

    def init_spec(self) -> Spec:
        """The network's parameters, filled from the checkpoint, each slice on its own."""
        return {name: dataclasses.replace(leaf, init=_FromRun(self, name)) for name, leaf in spec(self.model).items()}

    def read(self, name: str, shape: tuple[int, ...], index: Index) -> np.ndarray:
        """A slice of one parameter.

        Raises:
          NoCheckpointError: the run has none.
          ValueError: the run trained a network of another shape.
        """
        checkpoint, prefix = self._source
        return checkpoint.read(prefix + name, index)

    @functools.cached_property
    def _source(self) -> tuple[Checkpoint, str]:
        """The run's newest checkpoint, and what the parameters' names, or their averages', begin with."""
        checkpoint = CheckpointManager(f"{self.run}/checkpoints").open()
        average = re.sub("^params/", "ema/", self.prefix)
        prefix = average if checkpoint.names(f"^{re.escape(average)}") else self.prefix
        checkpoint.check({prefix + name: (leaf.shape, np.dtype(np.float32)) for name, leaf in spec(self.model).items()})
        return checkpoint, prefix


@dataclasses.dataclass(frozen=True)
class _FromRun:
    """An initial value read from a checkpoint."""

    source: Pretrained
    parameter: str

    def __call__(self, name: str, shape: tuple[int, ...], seed: int, index: Index) -> np.ndarray:
        return self.source.read(self.parameter, shape, index)
