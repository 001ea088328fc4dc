"""Stage 2: one training step of a prior over the tokens of a frozen tokenizer.

    B batch, N tokens, K codes a position
"""
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vqim.nn.context import Context, Kernels
from vqim.nn.layers import check_positive
from vqim.nn.module import apply, spec
from vqim.optim.network import accumulate, gradients, trainable, update_network
from vqim.optim.optimizer import Optimizer
from vqim.optim.schedules import Schedule
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.state.health import check_finite, health_spec
from vqim.state.leaf import Spec, State, prefixed, select
from vqim.state.random import step_key
from vqim.tokenizer.model import ImageTokenizer, images_to_float
from vqim.tokenizer.pretrained import Pretrained
from vqim.tokenizer.task import DTYPES, check_image_data

NATS_PER_BIT = math.log(2)

PriorFactory = Callable[..., AutoregressivePrior]


class PriorTask:
    """Maximum likelihood of a frozen tokenizer's tokens, ViT-VQGAN section 4.

    The tokens are made in each step, after augmentation, by the tokenizer's encoder (in float32, whatever `dtype` is:
    the same picture has the same tokens in every run), or come with the batch from a token cache. The tokenizer is
    part of the state and of the checkpoints either way, so that a run can make pictures on its own.

    Args:
      tokenizer: the trained tokenizer.
      prior: called with `grid` and `num_classes`; makes the network.
      optimizer: of the prior's parameters.
      learning_rate: its schedule.
      num_classes: of the data; 0 trains without classes.
      max_gradient_norm: gradients are scaled down to this global norm; None leaves them, as the paper does.
      num_micro_batches: each step cuts its batch into so many parts, one after another, to need less memory.
      dtype: of computation, 'float32' (the paper) or 'bfloat16'; parameters are float32 either way.
    """

    def __init__(
        self, tokenizer: Pretrained, prior: PriorFactory, optimizer: Optimizer, learning_rate: Schedule,
        num_classes: int, *, max_gradient_norm: float | None = None, num_micro_batches: int = 1,
        dtype: str = "float32",
    ):
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {sorted(DTYPES)}, got {dtype!r}")
        check_positive(num_micro_batches=num_micro_batches)
        if max_gradient_norm is not None and not max_gradient_norm > 0:
            raise ValueError(f"max_gradient_norm must be positive or None, got {max_gradient_norm}")
        if not isinstance(tokenizer.model, ImageTokenizer):
            raise TypeError(f"tokenizer must be a pretrained ImageTokenizer, got {type(tokenizer.model).__name__}")
        self.pretrained, self.tokenizer = tokenizer, tokenizer.model
        self.prior = prior(grid=self.tokenizer.grid, num_classes=num_classes)
        self.optimizer, self.learning_rate, self.num_classes = optimizer, learning_rate, num_classes
        self.max_gradient_norm, self.num_micro_batches = max_gradient_norm, num_micro_batches
        self.dtype = DTYPES[dtype]
        self._params = spec(self.prior)
        self.checked = ["loss", *self._params]

    def init_spec(self) -> Spec:
        """`params/prior`, `optimizer/prior`, `frozen/tokenizer` and the health flags."""
        return {
            **prefixed("params/prior/", self._params),
            **prefixed("optimizer/prior/", self.optimizer.init_spec(self._params)),
            **prefixed("frozen/tokenizer/", self.pretrained.init_spec()),
            **health_spec(self.checked),
        }

    def check_data(self, data: Any) -> None:
        """Raises ValueError unless the data have the tokenizer's image size or grid, and the prior's classes."""
        check_image_data(data, self.tokenizer)
        if hasattr(data, "check_written_by"):
            data.check_written_by(self.tokenizer.grid.as_lists(), self.pretrained.fingerprint())
        if self.num_classes and data.num_classes != self.num_classes:
            raise ValueError(
                f"num_classes must be the data's {data.num_classes}, or 0 to ignore them; got {self.num_classes}")

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
        leaves = trainable(state, "prior")

        def differentiate(part: dict[str, Tensor], key: Tensor) -> dict[str, Any]:
            tokens_BNK = self.tokens(state, part, kernels)
            context = Context(kernels, self.dtype, key)
            loss = apply(self.prior.loss, leaves, tokens_BNK, part["labels"], context)
            return {"loss": loss.detach(), "grads": gradients(loss, leaves)}

        key = step_key(scalars["seed"], scalars["step"], "prior")
        computed = accumulate(differentiate, batch, key, self.num_micro_batches)
        loss, grads = computed["loss"], computed["grads"]
        keep = check_finite(state, [loss, *grads.values()], scalars["step"])
        metrics = {"loss": loss, "loss/bits_per_token": loss / NATS_PER_BIT}
        return metrics | update_network(
            state, "prior", grads, self.optimizer, scalars, keep, self.max_gradient_norm)

    def tokens(self, state: State, batch: dict[str, Tensor], kernels: Kernels) -> Tensor:
        """The batch's tokens [B, N, K]."""
        if "tokens" in batch:
            return batch["tokens"].long()
        with torch.no_grad():
            images_BCHW = images_to_float(batch["images"])
            return apply(self.tokenizer.tokens, select(state, "frozen/tokenizer/"), images_BCHW, Context(kernels))

    def images(self, state: State, tokens_BNK: Tensor, kernels: Kernels) -> Tensor:
        """Pictures of tokens, float32 [B, C, H, W] in [0, 1]."""
        with torch.no_grad():
            return apply(self.tokenizer.images, select(state, "frozen/tokenizer/"), tokens_BNK, Context(kernels))

    def logits(self, state: State, tokens_BNK: Tensor, labels_B: Tensor, kernels: Kernels) -> Tensor:
        """Teacher-forced logits in evaluation mode, float32 [B, N, V]."""
        with torch.no_grad():
            context = Context(kernels, self.dtype)
            return apply(self.prior.forward, select(state, "params/prior/"), tokens_BNK, labels_B, context).float()

    def describe(self) -> dict[str, int]:
        """Numbers of parameters: the prior's, and the frozen tokenizer's."""
        frozen = sum(leaf.size for leaf in spec(self.tokenizer).values())
        return {"prior": sum(leaf.size for leaf in self._params.values()), "tokenizer (frozen)": frozen}
