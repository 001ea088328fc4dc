"""A linear classifier on each layer of frozen features, all trained at once. ViT-VQGAN sections 4.2, 5.3, Appendix A.

    B batch, L layers, D features, C classes
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqim.nn.context import Context, Kernels
from vqim.optim.network import gradients, trainable, update_network
from vqim.optim.optimizer import Optimizer
from vqim.optim.schedules import Schedule
from vqim.probe.features import Features
from vqim.state.health import check_finite, health_spec
from vqim.state.init import Constant
from vqim.state.leaf import Leaf, Spec, State, prefixed, select

STATISTICS_DECAY = 0.95
"""Of the running mean and variance by which features are standardised: about the last twenty batches."""

_EPS = 1e-5


class ProbeTask:
    """Softmax regression on standardised features of each layer; the heads share nothing but the batches.

    Features are standardised, value by value, by the batch's mean and variance in training and by running ones in
    evaluation (batch normalisation without gain and bias), so that layers of different scale train alike.

    Args:
      features: frozen, one vector a layer.
      num_classes: of the data.
      optimizer: of the heads.
      learning_rate: its schedule.
    """

    num_micro_batches = 1

    def __init__(self, features: Features, num_classes: int, optimizer: Optimizer, learning_rate: Schedule):
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.features, self.num_classes = features, num_classes
        self.optimizer, self.learning_rate = optimizer, learning_rate
        layers, width = features.num_layers, features.width
        self._params: Spec = {
            "kernel_LDC": Leaf((layers, width, num_classes), Constant(0.0), ("layers", "in", "out")),
            "bias_LC": Leaf((layers, num_classes), Constant(0.0), ("layers", "features")),
        }
        self.checked = ["loss", *self._params]

    def init_spec(self) -> Spec:
        """`params/probe`, `optimizer/probe`, `statistics/probe`, `frozen/features` and the health flags."""
        shape = (self.features.num_layers, self.features.width)
        return {
            **prefixed("params/probe/", self._params),
            **prefixed("optimizer/probe/", self.optimizer.init_spec(self._params)),
            "statistics/probe/mean_LD": Leaf(shape, Constant(0.0), ("layers", "features")),
            "statistics/probe/variance_LD": Leaf(shape, Constant(1.0), ("layers", "features")),
            **prefixed("frozen/features/", self.features.init_spec()),
            **health_spec(self.checked),
        }

    def check_data(self, data: Any) -> None:
        """Raises ValueError unless the data have the features' image size, and the classes."""
        if data.num_classes != self.num_classes:
            raise ValueError(f"num_classes must be the data's {data.num_classes}, got {self.num_classes}")
        if data.image_size != self.features.image_size:
            raise ValueError(f"image_size of the data must be {self.features.image_size}, got {data.image_size}")

    def host_scalars(self, step: int) -> dict[str, float]:
        """What changes from step to step."""
        return {"learning_rate": self.learning_rate(step)}

    def program(self, step: int) -> str:
        """One for all steps."""
        return "train"

    def train_step(
        self, state: State, batch: dict[str, Tensor], scalars: dict[str, Tensor], kernels: Kernels,
        program: str = "train",
    ) -> dict[str, Tensor]:
        """One update of `state` in place; see `vqim.training.task.Task`."""
        features_LBD = self.features(select(state, "frozen/features/"), batch, Context(kernels))
        mean_LD, variance_LD = features_LBD.mean(1), features_LBD.var(1, correction=0)
        leaves = trainable(state, "probe")
        losses_L = F.cross_entropy(
            _logits(leaves, features_LBD, mean_LD, variance_LD).permute(1, 2, 0),
            batch["labels"].long()[:, None].expand(-1, len(features_LBD)), reduction="none").mean(0)
        grads = gradients(losses_L.sum(), leaves)
        loss = losses_L.detach().mean()
        keep = check_finite(state, [loss, *grads.values()], scalars["step"])
        # The first batch's statistics stand for all before it.
        weight = torch.where(scalars["step"] == 0, 1.0, 1 - STATISTICS_DECAY)
        for name, new in (("mean_LD", mean_LD), ("variance_LD", variance_LD)):
            running = state[f"statistics/probe/{name}"]
            running.copy_(torch.where(keep, running + weight * (new - running), running))
        return {"loss": loss, **update_network(state, "probe", grads, self.optimizer, scalars, keep)}

    def logits(self, state: State, batch: dict[str, Tensor], kernels: Kernels) -> Tensor:
        """Class logits of every layer's head in evaluation mode, float32 [L, B, C]."""
        with torch.no_grad():
            features_LBD = self.features(select(state, "frozen/features/"), batch, Context(kernels))
            return _logits(select(state, "params/probe/"), features_LBD,
                           state["statistics/probe/mean_LD"], state["statistics/probe/variance_LD"])

    def describe(self) -> dict[str, int]:
        """Numbers of parameters: the heads', and the frozen networks'."""
        return {"probe": sum(leaf.size for leaf in self._params.values()),
                "features (frozen)": sum(leaf.size for leaf in self.features.init_spec().values())}


def _logits(params: State, features_LBD: Tensor, mean_LD: Tensor, variance_LD: Tensor) -> Tensor:
    """[L, B, C]."""
    standardised_LBD = (features_LBD - mean_LD[:, None]) * torch.rsqrt(variance_LD[:, None] + _EPS)
    return torch.baddbmm(params["bias_LC"][:, None], standardised_LBD, params["kernel_LDC"])
