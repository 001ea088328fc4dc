"""Measures a linear probe on a validation set, layer by layer."""
from typing import Any

import torch
from torch import Tensor

from vqim.evaluation.reconstruction import Averages
from vqim.probe.task import ProbeTask
from vqim.state.leaf import State
from vqim.training.summaries import Curve


class AccuracyEvaluator:
    """Top-1 accuracy of every layer's head, and the best of them.

    Args:
      batch_size: pictures at a time, over all processes.
      every: steps between two measurements; 0 for the end alone.
    """

    def __init__(self, batch_size: int, every: int = 0):
        self.batch_size, self.every = batch_size, every
        self._program: Any = None

    def __call__(self, task: ProbeTask, data: Any, state: State, runtime: Any) -> dict[str, Any]:
        """See `vqim.training.task.Evaluator`."""
        def measure(arrays: State, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            correct_LB = task.logits(arrays, batch, runtime.kernels).argmax(-1) == batch["labels"]
            return correct_LB.to(torch.float32), batch["valid"]

        self._program = self._program or runtime.compile(measure)
        averages = Averages()
        for batch in data.evaluation(
                self.batch_size // runtime.process_count,
                process_index=runtime.process_index, process_count=runtime.process_count):
            correct_LB, valid_B = runtime.fetch(self._program(state, runtime.put(batch)))
            averages.add({str(layer): correct_B for layer, correct_B in enumerate(correct_LB)}, valid_B)
        accuracies_L = tuple(averages.result()[str(layer)] for layer in range(task.features.num_layers))
        return {"evaluation/top1": max(accuracies_L), "evaluation/top1_by_layer": Curve(accuracies_L, "layer")}
