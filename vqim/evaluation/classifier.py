"""Measures a classifier on a validation set.

    B batch, Y classes
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqim.classifier.task import ClassifierTask
from vqim.evaluation.reconstruction import Averages
from vqim.state.leaf import State


class ClassifierEvaluator:
    """Top-1 accuracy and cross-entropy, in nats.

    Args:
      batch_size: pictures at a time, over all processes.
      every: steps between two measurements; 0 for the end alone.
    """

    def __init__(self, batch_size: int, every: int = 0):
        self.batch_size, self.every = batch_size, every
        self._program: Any = None

    def __call__(self, task: ClassifierTask, data: Any, state: State, runtime: Any) -> dict[str, Any]:
        """See `vqim.training.task.Evaluator`."""
        def measure(arrays: State, batch: dict[str, Tensor]) -> list[Tensor]:
            logits_BY, labels_B = task.logits(arrays, batch, runtime.kernels), batch["labels"].long()
            correct_B = (logits_BY.argmax(-1) == labels_B).to(torch.float32)
            return [correct_B, F.cross_entropy(logits_BY, labels_B, reduction="none"), batch["valid"]]

        self._program = self._program or runtime.compile(measure)
        averages = Averages()
        for batch in data.evaluation(
                self.batch_size // runtime.process_count,
                process_index=runtime.process_index, process_count=runtime.process_count):
            correct_B, nats_B, valid_B = runtime.fetch(self._program(state, runtime.put(batch)))
            averages.add({"top1": correct_B, "cross_entropy": nats_B}, valid_B)
        return {f"evaluation/{name}": value for name, value in averages.result().items()}
