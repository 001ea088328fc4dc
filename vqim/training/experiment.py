"""What a training run is made of, before any work is done."""
import dataclasses
from collections.abc import Sequence
from typing import Any

from vqim.checkpoint.policy import Keep, KeepLatest
from vqim.training.task import Evaluator, Task


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The root that gin fills: `train.task = ...`, `train.data = ...`.

    Attributes:
      task: what to train.
      data: pictures or tokens: `data.Images`, `data.Tokens`, or anything with the same methods.
      num_steps: of the whole run, counted from its beginning.
      batch_size: pictures a step, over all processes.
      seed: of parameters, data order and everything else that is random.
      log_every: steps between two readings of the metrics; each is a mean over the steps since the last one.
      save_every: steps between two checkpoints; one more is made at the end.
      keep: which checkpoints stay; the newest always does.
      evaluators: each runs every so many steps, as it says itself, and at the end.
    """

    task: Task
    data: Any
    num_steps: int
    batch_size: int
    seed: int = 0
    log_every: int = 50
    save_every: int = 1000
    keep: Sequence[Keep] = (KeepLatest(2),)
    evaluators: Sequence[Evaluator] = ()

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be at least 0 and below 2^31, got {self.seed}")
        self.task.check_data(self.data)
