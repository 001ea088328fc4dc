"""The tokenizer's adversary: a discriminator, what it learns from, and how.

    B batch, C image channels, H W image size
"""
import dataclasses

import torch
from torch import Tensor, nn

from vqim.nn.context import Context
from vqim.nn.layers import check_positive
from vqim.nn.module import apply, spec
from vqim.optim.arguments import require, require_step_count
from vqim.optim.network import gradients, trainable, update_network
from vqim.optim.optimizer import Optimizer
from vqim.optim.schedules import Schedule
from vqim.state.init import Constant
from vqim.state.leaf import Leaf, Spec, State, prefixed
from vqim.tokenizer.adversarial import (
    KINDS,
    LECAM_DECAY,
    Kind,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam_penalty,
    r1_penalty,
)
from vqim.tokenizer.model import ImageTokenizer

TRAIN, TRAIN_WITH_R1, TRAIN_BEFORE_ADVERSARY = "train", "train_with_r1", "train_before_adversary"
"""The programs of stage 1."""

_MEANS = ("logits_real", "logits_fake")


@dataclasses.dataclass(frozen=True)
class Contest:
    """One batch as the discriminator sees it, before its update.

    Attributes:
      generator_loss: scalar, for the tokenizer, without its weight.
      discriminator_loss: scalar, with its regularisers and their weights.
      params: the discriminator's parameters as leaves of the autograd graph.
      metrics: scalars without gradients, by name.
    """

    generator_loss: Tensor
    discriminator_loss: Tensor
    params: State
    metrics: dict[str, Tensor]

    def gradients(self) -> State:
        """Of the discriminator's loss; the graph stays, for the tokenizer's."""
        return gradients(self.discriminator_loss, self.params, retain_graph=True)


class Adversary:
    """A discriminator of pictures and reconstructions, trained beside the tokenizer. ViT-VQGAN sections 3.3 and 5.1.

    Both networks learn from one forward pass: the tokenizer from the discriminator as it was before this step, the
    discriminator from the reconstruction that the tokenizer made before this step. R1 and both of its derivatives go
    through the discriminator in the task's dtype, as in stylegan2-ada-pytorch, whose layers at high resolution have 16
    bits; its sum over pixels is float32.

    The paper says 'StyleGAN discriminator', the weight 0.1 and the optimizer, and no more; the defaults of the rest
    are those of StyleGAN2 (Karras et al., 2020).

    Args:
      discriminator: a module with `image_size`, that makes of images [B, C, H, W], about [0, 1], and a context float32
        logits, [B] or one for each of its patches, [B, h, w]. R1 needs its second derivative: on XLA, torch.einsum and
        max pooling have none and are silently left out of it (torch_xla 2.9).
      optimizer: of the discriminator's parameters. Its count of updates (Adam's bias correction) starts at
        `start_step`.
      learning_rate: its schedule, by the step of the run, so that one schedule can serve both networks.
      loss: 'non_saturating' (StyleGAN2), 'hinge' or 'vanilla' (VQGAN).
      weight: of the adversarial term in the tokenizer's loss.
      start_step: before it, there are no adversarial terms and the discriminator stays as it is.
      r1_weight: gamma of R1, for images in [-1, 1] as it is published; 0 trains without.
      r1_every: R1 is part of every so many steps, from `start_step` on, with so many times its weight (Karras et al.,
        2020, section 3.1). One update has all of a step's terms, so that Adam's settings need no correction.
      lecam_weight: of LeCAM; 0 trains without. Its running means are those from before the step.
      adaptive_layer: a parameter of the tokenizer, the kernel of the decoder's last layer: VQGAN's adaptive weight,
        measured on it, multiplies `weight`. None leaves `weight` as it is.
      max_gradient_norm: the discriminator's gradients are scaled down to this global norm; None leaves them.
    """

    def __init__(
        self, discriminator: nn.Module, optimizer: Optimizer, learning_rate: Schedule, *,
        loss: Kind = "non_saturating", weight: float = 0.1, start_step: int = 0,
        r1_weight: float = 10.0, r1_every: int = 16, lecam_weight: float = 0.0,
        adaptive_layer: str | None = None, max_gradient_norm: float | None = None,
    ):
        require(loss in KINDS, "loss", f"one of {KINDS}", loss)
        self.weights = {"adversarial": weight, "r1": r1_weight, "lecam": lecam_weight}
        for name, value in self.weights.items():
            require(value >= 0, "weight" if name == "adversarial" else f"{name}_weight", "at least 0", value)
        require_step_count("start_step", start_step, 0)
        check_positive(r1_every=r1_every)
        require(max_gradient_norm is None or max_gradient_norm > 0, "max_gradient_norm", "positive or None",
                max_gradient_norm)
        self.discriminator, self.optimizer, self.learning_rate = discriminator, optimizer, learning_rate
        self.loss, self.start_step, self.r1_every = loss, start_step, r1_every
        self.adaptive_layer, self.max_gradient_norm = adaptive_layer, max_gradient_norm
        self._params = spec(discriminator)
        self.checked = ["discriminator/loss", *prefixed("discriminator/", self._params)]

    def init_spec(self) -> Spec:
        """`params/discriminator`, `optimizer/discriminator`, and with LeCAM `statistics/discriminator`."""
        means = {f"statistics/discriminator/{name}": Leaf((), Constant(0.0)) for name in _MEANS}
        return {
            **prefixed("params/discriminator/", self._params),
            **prefixed("optimizer/discriminator/", self.optimizer.init_spec(self._params)),
            **(means if self.weights["lecam"] else {}),
        }

    def check_model(self, model: ImageTokenizer) -> None:
        """Raises ValueError unless the discriminator and the adaptive layer fit the tokenizer."""
        if self.discriminator.image_size != model.image_size:
            raise ValueError(f"image_size of the discriminator must be the tokenizer's {model.image_size}, "
                             f"got {self.discriminator.image_size}")
        names = [name for name in spec(model) if name.startswith("decoder/")]
        if self.adaptive_layer is not None and self.adaptive_layer not in names:
            raise ValueError(f"adaptive_layer must be None or a parameter of the decoder, one of {', '.join(names)}; "
                             f"got {self.adaptive_layer!r}")

    def program(self, step: int) -> str:
        """Which of the programs makes a step."""
        since_start = step - self.start_step
        if since_start < 0:
            return TRAIN_BEFORE_ADVERSARY
        return TRAIN_WITH_R1 if self.weights["r1"] and since_start % self.r1_every == 0 else TRAIN

    def host_scalars(self, step: int) -> dict[str, float]:
        """The learning rate, and the weights of those terms that there are."""
        weights = {f"weight/{name}": weight for name, weight in self.weights.items() if weight}
        weights["weight/adversarial"] = self.weights["adversarial"] if step >= self.start_step else 0.0
        return {"learning_rate/discriminator": self.learning_rate(step), **weights}

    def judge(
        self, state: State, images_BCHW: Tensor, reconstruction_BCHW: Tensor, scalars: dict[str, Tensor],
        context: Context, program: str,
    ) -> Contest:
        """The losses of both sides, of pictures and of their reconstructions with the graph that made them."""
        context = context.fold("discriminator")
        params = trainable(state, "discriminator")
        with_r1 = program == TRAIN_WITH_R1
        signed_BCHW = (2 * images_BCHW - 1).requires_grad_(with_r1)  # the units of gamma
        logits_real = apply(self.discriminator.forward, params, (signed_BCHW + 1) / 2, context)
        logits_fake = apply(self.discriminator.forward, params, reconstruction_BCHW, context)
        terms = {"loss": discriminator_loss(self.loss, logits_real, logits_fake)}
        loss = terms["loss"]
        if with_r1:
            terms["r1"] = r1_penalty(logits_real, signed_BCHW)
            loss = loss + scalars["weight/r1"] * (self.r1_every / 2) * terms["r1"]
        if self.weights["lecam"]:
            mean_real, mean_fake = (state[f"statistics/discriminator/{name}"] for name in _MEANS)
            terms["lecam"] = lecam_penalty(logits_real, logits_fake, mean_real, mean_fake)
            loss = loss + scalars["weight/lecam"] * terms["lecam"]
        terms |= {"logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}
        metrics = {f"discriminator/{name}": value.detach() for name, value in terms.items()}
        return Contest(generator_loss(self.loss, logits_fake), loss, params, metrics)

    def generator_weight(
        self, contest: Contest, reconstruction_loss: Tensor, params: State, scalars: dict[str, Tensor],
    ) -> Tensor:
        """The weight of the adversarial term in this batch.

        Args:
          contest: of the batch.
          reconstruction_loss: what the adaptive weight measures against.
          params: of the tokenizer, leaves of the graph.
          scalars: of the step.
        """
        weight = scalars["weight/adversarial"]
        if self.adaptive_layer is None:
            return weight
        return weight * adaptive_weight(reconstruction_loss, contest.generator_loss, params[self.adaptive_layer])

    def update(
        self, state: State, grads: State, metrics: dict[str, Tensor], scalars: dict[str, Tensor], keep: Tensor,
    ) -> dict[str, Tensor]:
        """One update of the discriminator, and of LeCAM's means, in place; nothing changes where `keep` is False.

        Args:
          state: of the whole task.
          grads: of the discriminator.
          metrics: `Contest.metrics` of the whole batch.
          scalars: of the step.
          keep: bool scalar.

        Returns: what the update shows, by name.
        """
        number = scalars["step"] - self.start_step
        shown = update_network(
            state, "discriminator", grads, self.optimizer,
            {"learning_rate": scalars["learning_rate/discriminator"], "step": number}, keep, self.max_gradient_norm)
        if self.weights["lecam"]:
            # The first batch's logits stand for all before it.
            share = torch.where(number == 0, 1.0, 1 - LECAM_DECAY)
            for name in _MEANS:
                running = state[f"statistics/discriminator/{name}"]
                new = running + share * (metrics[f"discriminator/{name}"] - running)
                running.copy_(torch.where(keep, new, running))
        return {f"discriminator/{name}": value for name, value in shown.items()}

    def describe(self) -> dict[str, int]:
        """The discriminator's number of parameters."""
        return {"discriminator": sum(leaf.size for leaf in self._params.values())}
