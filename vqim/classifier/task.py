"""Training a classifier of pictures.

    B batch, Y classes
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqim.classifier.model import ImageClassifier
from vqim.nn.context import Context, Kernels
from vqim.nn.module import apply, spec
from vqim.optim.network import gradients, trainable, update_network
from vqim.optim.optimizer import Optimizer
from vqim.optim.schedules import Schedule
from vqim.state.health import check_finite, health_spec
from vqim.state.leaf import Spec, State, prefixed, select
from vqim.state.random import step_key
from vqim.tokenizer.model import images_to_float
from vqim.tokenizer.task import DTYPES


class ClassifierTask:
    """Cross-entropy of the data's labels.

    Args:
      network: to be trained.
      optimizer: of its parameters.
      learning_rate: its schedule.
      max_gradient_norm: gradients are scaled down to this global norm; None leaves them.
      dtype: of computation, 'float32' or 'bfloat16'; parameters are float32 either way.
    """

    num_micro_batches = 1

    def __init__(
        self, network: ImageClassifier, optimizer: Optimizer, learning_rate: Schedule, *,
        max_gradient_norm: float | None = None, dtype: str = "float32",
    ):
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {sorted(DTYPES)}, got {dtype!r}")
        if max_gradient_norm is not None and not max_gradient_norm > 0:
            raise ValueError(f"max_gradient_norm must be positive or None, got {max_gradient_norm}")
        self.network, self.optimizer, self.learning_rate = network, optimizer, learning_rate
        self.max_gradient_norm, self.dtype = max_gradient_norm, DTYPES[dtype]
        self._params = spec(network)
        self.checked = ["loss", *self._params]

    def init_spec(self) -> Spec:
        """`params/classifier`, `optimizer/classifier` and the health flags."""
        return {
            **prefixed("params/classifier/", self._params),
            **prefixed("optimizer/classifier/", self.optimizer.init_spec(self._params)),
            **health_spec(self.checked),
        }

    def check_data(self, data: Any) -> None:
        """Raises ValueError unless the data are pictures of the network's size and classes."""
        if data.num_classes != self.network.num_classes:
            raise ValueError(f"num_classes must be the data's {data.num_classes}, got {self.network.num_classes}")
        if data.image_size != self.network.image_size:
            raise ValueError(f"image_size of the data must be {self.network.image_size}, got {data.image_size}")

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
        context = Context(kernels, self.dtype, step_key(scalars["seed"], scalars["step"], "classifier"))
        leaves = trainable(state, "classifier")
        logits_BY = apply(self.network.forward, leaves, images_to_float(batch["images"]), context)
        labels_B = batch["labels"].long()
        loss = F.cross_entropy(logits_BY, labels_B)
        grads = gradients(loss, leaves)
        keep = check_finite(state, [loss, *grads.values()], scalars["step"])
        accuracy = (logits_BY.detach().argmax(-1) == labels_B).float().mean()
        return {"loss": loss.detach(), "accuracy": accuracy, **update_network(
            state, "classifier", grads, self.optimizer, scalars, keep, self.max_gradient_norm)}

    def logits(self, state: State, batch: dict[str, Tensor], kernels: Kernels) -> Tensor:
        """Class logits in evaluation mode, float32 [B, Y]."""
        with torch.no_grad():
            images_BCHW = images_to_float(batch["images"])
            return apply(self.network.forward, select(state, "params/classifier/"), images_BCHW, Context(kernels))

    def describe(self) -> dict[str, int]:
        """Number of parameters."""
        return {"classifier": sum(leaf.size for leaf in self._params.values())}
