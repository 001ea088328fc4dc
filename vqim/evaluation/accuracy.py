"""How well class logits predict the labels.

    B batch, L layers, Y classes
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.evaluation import About, Curve, Items, Tally
from vqim.contracts.frozen import Frozen
from vqim.evaluation.distances import Averages
from vqim.state.leaf import State


class Accuracy:
    """Top-1 accuracy of every layer and of the best layer, and the best layer's cross-entropy in nats."""

    needs = ("logits_LBY", "labels_B")
    frozen: Mapping[str, Frozen] = {}

    def observe(self, items: Items, frozen: Mapping[str, State], context: Context) -> dict[str, Tensor]:
        """See `Metric`."""
        assert items.logits_LBY is not None and items.labels_B is not None
        found = {}
        for layer, logits_BY in enumerate(items.logits_LBY):
            found[f"top1/{layer}"] = (logits_BY.argmax(-1) == items.labels_B).to(torch.float32)
            found[f"cross_entropy/{layer}"] = F.cross_entropy(logits_BY, items.labels_B, reduction="none")
        return found

    def tally(self, about: About) -> Tally:
        """See `Metric`."""
        return _AccuracyTally()


class _AccuracyTally(Averages):
    def result(self) -> dict[str, Any]:
        """Results for the best layer, and by layer."""
        means = super().result()
        top1_L = tuple(means[f"top1/{layer}"] for layer in range(len(means) // 2))
        best = _best(top1_L)
        return {"top1": top1_L[best], "cross_entropy": means[f"cross_entropy/{best}"],
                "top1_by_layer": Curve(top1_L, "layer")}

    def values(self) -> dict[str, np.ndarray]:
        """Those of the best layer."""
        means, values = super().result(), self.state()
        best = _best([means[f"top1/{layer}"] for layer in range(len(means) // 2)])
        return {name: values[f"{name}/{best}"] for name in ("top1", "cross_entropy")}


def _best(top1_L: Sequence[float]) -> int:
    return max(range(len(top1_L)), key=lambda layer: top1_L[layer])
