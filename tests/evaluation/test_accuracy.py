"""Top-1 accuracy and cross-entropy of class logits, of several layers, over batches of which the last is filled up."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vqim.contracts.evaluation import Items
from vqim.evaluation.accuracy import Accuracy
from vqim.evaluation.passes import Classifications, evaluate
from vqim.runtime.torch import TorchRuntime

LOGITS = np.random.default_rng(0).normal(size=(3, 7, 3)).astype(np.float32)
"""Of three layers for seven images."""
LABELS = np.array([0, 1, 2, 0, 1, 2, 0], np.int32)


class Data:
    """Batches of four; what fills the last one up would count as right."""

    num_classes, image_size = 3, 8

    def num_examples(self, split):
        return 7

    def evaluation(self, batch_size, *, split, process_index, process_count, first_batch=0, num_examples=None):
        assert batch_size == 4
        filled = np.concatenate([LOGITS, np.tile(np.array([99, 0, 0], np.float32), (3, 1, 1))], 1).transpose(1, 0, 2)
        for start in (0, 4)[first_batch:]:
            rows = slice(start, start + 4)
            yield {"logits": filled[rows], "labels": np.append(LABELS, 0)[rows].astype(np.int32),
                   "valid": np.arange(8)[rows] < 7}


class Given:
    """An objective whose logits come with the batch."""

    frozen = {}

    def classify(self, state, batch, context):
        return Items(batch["valid"], batch["labels"].long(), logits_LBY=batch["logits"].transpose(0, 1))


def measured(num_layers):
    """Results for the first so many layers."""
    class OfLayers(Given):
        def classify(self, state, batch, context):
            return super().classify(state, {**batch, "logits": batch["logits"][:, :num_layers]}, context)

    task = SimpleNamespace(objective=OfLayers(), dtype=torch.float32, evaluation_dtype=torch.float32)
    return evaluate(Classifications([Accuracy()], batch_size=4).begin(task, Data(), {}, TorchRuntime()))


def cross_entropy(logits):
    probabilities = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(1, keepdims=True)
    return -np.log(probabilities[np.arange(7), LABELS]).mean()


def test_accuracy_and_cross_entropy_are_means_over_the_images_that_are_there():
    results = measured(1)
    assert results["evaluation/top1"] == pytest.approx((LOGITS[0].argmax(1) == LABELS).mean())
    assert results["evaluation/cross_entropy"] == pytest.approx(cross_entropy(LOGITS[0]), rel=1e-6)


def test_of_several_layers_the_best_one_counts_and_all_are_a_curve():
    results = measured(3)
    top1 = (LOGITS.argmax(-1) == LABELS).mean(1)
    assert len(set(top1)) == 3 and top1.argmax() > 0
    assert results["evaluation/top1"] == pytest.approx(top1.max())
    assert results["evaluation/cross_entropy"] == pytest.approx(cross_entropy(LOGITS[top1.argmax()]), rel=1e-6)
    assert results["evaluation/top1_by_layer"].values == pytest.approx(tuple(top1))
    assert results["evaluation/top1_by_layer"].title == "layer"
