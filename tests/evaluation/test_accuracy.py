"""A classifier's accuracy and cross-entropy, over batches of which the last is padded."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vqim.evaluation.classifier import ClassifierEvaluator
from vqim.runtime.torch import TorchRuntime

LOGITS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0], np.int32)


class Data:
    """Seven rows in batches of four; what pads the last one would count as right."""

    def evaluation(self, batch_size, *, process_index, process_count):
        assert batch_size == 4
        yield {"logits": LOGITS[:4], "labels": LABELS[:4], "valid": np.ones(4, bool)}
        yield {"logits": np.concatenate([LOGITS[4:], [[99, 0, 0]]]).astype(np.float32),
               "labels": np.append(LABELS[4:], 0).astype(np.int32), "valid": np.array([True, True, True, False])}


def test_accuracy_and_cross_entropy_are_means_over_the_pictures_that_are_there():
    task = SimpleNamespace(logits=lambda state, batch, kernels: torch.as_tensor(batch["logits"]))
    results = ClassifierEvaluator(batch_size=4)(task, Data(), {}, TorchRuntime())
    probabilities = np.exp(LOGITS.astype(np.float64)) / np.exp(LOGITS.astype(np.float64)).sum(1, keepdims=True)
    assert results["evaluation/top1"] == pytest.approx((LOGITS.argmax(1) == LABELS).mean())
    assert results["evaluation/cross_entropy"] == pytest.approx(
        -np.log(probabilities[np.arange(7), LABELS]).mean(), rel=1e-6)
