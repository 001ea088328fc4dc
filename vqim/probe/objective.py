"""A linear classifier on each layer of frozen features, all trained at once. ViT-VQGAN sections 4.2, 5.3, Appendix A.

    B batch, L layers, D features, C classes
"""
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.data import Dataset, check_labelled_data
from vqim.contracts.evaluation import Items
from vqim.contracts.frozen import Frozen
from vqim.contracts.learning import Advanced, Computed, MakeLearner, OneLearner
from vqim.nn.module import apply, parameter, statistic
from vqim.probe.features import Features
from vqim.state import sections
from vqim.state.init import Constant
from vqim.state.leaf import State, select

STATISTICS_DECAY = 0.95
"""Decay of the running mean and variance that standardise features: about the last twenty batches."""

_EPS = 1e-5


class Probe(nn.Module):
    """Softmax regression on standardised features of each layer, with separate heads.

    Each feature is standardised by its mean and variance: the batch's in training, running ones in evaluation (batch
    normalisation without gain and bias). So layers with different scales train alike.
    """

    def __init__(self, num_layers: int, width: int, num_classes: int):
        super().__init__()
        self.kernel_LDC = parameter((num_layers, width, num_classes), Constant(0.0), "layers", "in", "out")
        self.bias_LC = parameter((num_layers, num_classes), Constant(0.0), "layers", "features")
        self.mean_LD = statistic((num_layers, width), Constant(0.0), "layers", "features")
        self.variance_LD = statistic((num_layers, width), Constant(1.0), "layers", "features")

    def forward(self, features_LBD: Tensor, mean_LD: Tensor, variance_LD: Tensor) -> Tensor:
        """Logits [L, B, C]."""
        standardised_LBD = (features_LBD - mean_LD[:, None]) * torch.rsqrt(variance_LD[:, None] + _EPS)
        return torch.baddbmm(self.bias_LC[:, None], standardised_LBD, self.kernel_LDC)

    def evaluate(self, features_LBD: Tensor) -> Tensor:
        """Logits [L, B, C], with the running statistics."""
        return self(features_LBD, self.mean_LD, self.variance_LD)

    def advance(self, sums: Mapping[str, Tensor], context: Context) -> Advanced:
        """The running statistics after a batch; they start from the first batch's statistics."""
        share = torch.where(context.scalars["step"] == 0, 1.0, 1 - STATISTICS_DECAY)
        running = {"mean_LD": self.mean_LD, "variance_LD": self.variance_LD}
        return Advanced({name: old + share * (sums[name] / sums["parts"] - old) for name, old in running.items()})


class ProbeObjective(OneLearner):
    """The cross-entropy of the data's labels, summed over layers so that each head learns independently.

    Args:
      features: frozen features, one vector for each layer.
      num_classes: the number of classes in the data.
      learner: how the heads are trained, `@training.Learner`.
    """

    name = "probe"

    def __init__(self, features: Features, num_classes: int, learner: MakeLearner):
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.features, self.num_classes = features, num_classes
        self.frozen: Mapping[str, Frozen] = {"features": features}
        self.probe = Probe(features.num_layers, features.width, num_classes)
        self.learner = learner(name=self.name, module=self.probe)

    def check_data(self, data: Dataset) -> None:
        """Raises ValueError unless the data have the features' image size and this number of classes."""
        check_labelled_data(data, self.num_classes, self.features.image_size)

    def compute(
        self, leaves: Mapping[str, State], arrays: State, batch: dict[str, Tensor], context: Context, program: str,
    ) -> Computed:
        """See `vqim.contracts.learning.Objective`."""
        features_LBD = self._features(arrays, batch, context)
        mean_LD, variance_LD = features_LBD.mean(1), features_LBD.var(1, correction=0)
        logits_LBC = apply(self.probe.forward, leaves[self.name], features_LBD, mean_LD, variance_LD)
        losses_L = F.cross_entropy(
            logits_LBC.permute(1, 2, 0), batch["labels"].long()[:, None].expand(-1, len(features_LBD)),
            reduction="none").mean(0)
        sums = {"mean_LD": mean_LD, "variance_LD": variance_LD, "parts": mean_LD.new_ones(())}
        return Computed({self.name: losses_L.sum()}, {"loss": losses_L.detach().mean()}, sums)

    def advance(self, arrays: State, computed: Computed, context: Context, program: str) -> Advanced:
        """The running statistics."""
        new = apply(self.probe.advance, sections.network_arrays(arrays, self.name), computed.sums, context)
        return Advanced({sections.statistics(self.name) + name: value for name, value in new.arrays.items()})

    def classify(self, state: State, batch: dict[str, Tensor], context: Context) -> Items:
        """Class logits of every layer's head in evaluation mode, float32 [L, B, C]."""
        logits_LBC = apply(self.probe.evaluate, sections.network_arrays(state, self.name),
                           self._features(state, batch, context))
        return Items(batch["valid"], batch["labels"].long(), logits_LBY=logits_LBC)

    def _features(self, state: State, batch: dict[str, Tensor], context: Context) -> Tensor:
        return self.features(select(state, sections.frozen("features")), batch, context=context.evaluation())
