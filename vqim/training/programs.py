"""A task's steps as compiled programs."""
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from vqim.contracts.runtime import Runtime
from vqim.contracts.task import Task
from vqim.state.leaf import State
from vqim.training.state import TrainState


class Programs:
    """A task's steps, compiled to one program per name. Metrics come back as one vector, so reading is one transfer."""

    def __init__(self, task: Task, runtime: Runtime):
        self._task, self._runtime = task, runtime
        self._compiled: dict[str, Callable[..., Tensor]] = {}
        self._names: dict[str, list[str]] = {}

    def __call__(self, program: str, state: TrainState, batch: dict[str, Tensor]) -> Tensor:
        """Updates the state's arrays once; returns the metrics, on the device."""
        if program not in self._compiled:
            self._compiled[program] = self._runtime.compile(functools.partial(self._step, program))
        scalars = self._runtime.scalars(
            {**self._task.host_scalars(state.step), "step": state.step, "seed": state.seed})
        return self._compiled[program](state.arrays, batch, scalars)

    def means(self, window: list[tuple[str, Tensor]]) -> dict[str, float]:
        """The mean of each metric over the steps in which it was computed."""
        values: dict[str, list[float]] = {}
        rows = self._runtime.fetch([metrics for _, metrics in window])
        for (program, _), row in zip(window, rows, strict=True):
            for name, value in zip(self._names[program], row.tolist(), strict=True):
                values.setdefault(name, []).append(value)
        return {name: sum(of_steps) / len(of_steps) for name, of_steps in values.items()}

    def _step(
        self, program: str, arrays: State, batch: dict[str, Tensor], scalars: dict[str, Tensor],
    ) -> Tensor:
        metrics = self._task.train_step(arrays, batch, scalars, self._runtime.kernels, program)
        self._names[program] = list(metrics)
        # A weight that the host gave is shown too, and comes from there.
        device = metrics["loss"].device
        return torch.stack([value.float().reshape(()).to(device, non_blocking=True) for value in metrics.values()])
