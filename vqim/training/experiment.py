"""The description of a training run, before any work is done."""
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vqim.checkpoint.policy import Keep, KeepLatest
from vqim.contracts.context import dtype_name
from vqim.contracts.data import Dataset
from vqim.contracts.evaluation import Evaluator
from vqim.contracts.learning import ReadsTokens
from vqim.contracts.task import Task
from vqim.training.data_identity import DataChangedError, identity
from vqim.training.start_from import StartFrom


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The root that gin fills: `train.task = ...`, `train.data = ...`.

    Attributes:
      task: what to train.
      data: images or tokens: `data.Images`, `data.Tokens`, or anything with the same methods.
      num_steps: the number of steps in the whole run, counted from its beginning.
      batch_size: the number of images in a step, over all processes.
      seed: seed for parameters, data order and everything else that is random.
      log_every: the number of steps between two readings of the metrics; each is a mean over the steps in between.
      save_every: the number of steps between two checkpoints; more are written before evaluations, and at the end.
      save_minutes: the time between two checkpoints; None for no such limit.
      keep: which checkpoints are kept; the newest always is.
      evaluators: evaluators; each sets its own interval in steps, and also runs at the end.
      start_from: other runs from which this run takes initial arrays.
      accept_changed_data: whether the run goes on where there are more or fewer training examples than before.
      needs_data: False for verbs that read a run on a machine without its data. They set it; gin files cannot.
    """

    task: Task
    data: Dataset
    num_steps: int
    batch_size: int
    seed: int = 0
    log_every: int = 50
    save_every: int = 1000
    save_minutes: float | None = None
    keep: Sequence[Keep] = (KeepLatest(2),)
    evaluators: Sequence[Evaluator] = ()
    start_from: Sequence[StartFrom] = ()
    accept_changed_data: bool = False
    needs_data: bool = True

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.save_minutes is not None and not self.save_minutes > 0:
            raise ValueError(f"save_minutes must be greater than 0, or None, got {self.save_minutes}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be at least 0 and below 2^31, got {self.seed}")
        if self.batch_size % self.task.num_micro_batches:
            raise ValueError(f"batch_size must be a multiple of num_micro_batches {self.task.num_micro_batches}, got "
                             f"{self.batch_size}")
        self.task.objective.check_batch(self.batch_size // self.task.num_micro_batches)
        if self.needs_data:
            self.data.num_examples("train")  # opens the data
            self.task.objective.check_data(self.data)
            computed_in = getattr(self.data, "computed_in", None)
            if computed_in is not None and computed_in != (wanted := dtype_name(self.task.evaluation_dtype)):
                raise ValueError(
                    f"data: the token cache was computed in {computed_in}, this run tokenises in {wanted}, which gives "
                    f"some images other tokens. Set training.GradientTask.evaluation_dtype = {computed_in!r}, or write "
                    "a cache in the other dtype")

    @functools.cached_property
    def data_identity(self) -> dict[str, Any]:
        """What checkpoints remember of the data; taken once, as it looks at every file."""
        return identity(self.data)

    def check_tokens(self, read: Callable[[str], np.ndarray] | None) -> None:
        """Raises DataChangedError where the data are tokens that this run's tokenizer did not write.

        See `ReadsTokens`: `read` gives the arrays of the run's checkpoint, and is None for a new run.
        """
        objective = self.task.objective
        try:
            if isinstance(objective, ReadsTokens):
                objective.check_tokens(self.data, read)
        except ValueError as error:
            raise DataChangedError(str(error)) from error
