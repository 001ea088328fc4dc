"""The tokenizer's adversary: a discriminator, its losses, and how it is trained.

    B batch, C image channels, H W image size
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol, get_args

import torch
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.learning import Computed, MakeLearner
from vqim.nn.layers import check_positive
from vqim.nn.module import apply, spec
from vqim.optim.arguments import require, require_step_count
from vqim.state import sections
from vqim.state.init import Constant
from vqim.state.leaf import Leaf, Spec, State
from vqim.tokenizer.discriminator.losses import (
    LECAM_DECAY,
    Kind,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam_penalty,
    r1_penalty,
)

NAME = "discriminator"
"""The network's name, in the state and in summaries."""

TRAIN, TRAIN_WITH_R1, TRAIN_BEFORE_ADVERSARY = "train", "train_with_r1", "train_before_adversary"
"""The programs of stage 1."""

_MEANS = ("logits_real", "logits_fake")


class Discriminator(Protocol):
    """A module from images [B, C, H, W], about [0, 1], to float32 logits: [B], or [B, h, w] for patches.

    Attributes:
      image_size: height and width of images.
    """

    image_size: int

    def check_batch(self, batch_size: int) -> None:
        """Raises ValueError unless it takes (micro-)batches of this size."""
        ...

    def __call__(self, images_BCHW: Tensor, context: Context) -> Tensor: ...


@dataclasses.dataclass(frozen=True)
class DiscriminatorStep:
    """The discriminator's results on one batch, before its update.

    Attributes:
      generator_loss: scalar loss for the tokenizer, without its weight.
      loss: scalar loss for the discriminator, with its regularisers and their weights.
      metrics: scalars without gradients, by name.
    """

    generator_loss: Tensor
    loss: Tensor
    metrics: dict[str, Tensor]


class Adversary:
    """A discriminator of images and reconstructions, trained beside the tokenizer. ViT-VQGAN sections 3.3 and 5.1.

    Both networks learn from one forward pass, with the parameters that they had before this step. R1 and both of its
    derivatives go through the discriminator in the task's dtype; its sum over pixels is float32. stylegan2-ada-pytorch
    does the same with 16 bits in its layers at high resolution.

    The paper says only 'StyleGAN discriminator', the weight 0.1 and the optimizer. All other defaults are those of
    StyleGAN2 (Karras et al., 2020).

    Args:
      discriminator: the network. R1 needs its second derivative: on XLA, torch.einsum and max pooling have none and
        are silently left out of it (torch_xla 2.9).
      learner: how it is trained, `@training.Learner`; it begins at `start_step`.
      loss: 'non_saturating' (StyleGAN2), 'hinge' or 'vanilla' (VQGAN).
      weight: the weight of the adversarial term in the tokenizer's loss.
      start_step: before this step, there are no adversarial terms and the discriminator does not change.
      r1_weight: gamma of R1, for images in [-1, 1] as published; 0 trains without R1. R1 is a sum over pixels, so small
        images and large batches want less of it: 10 in StyleGAN2 at 1024x1024 with batches of 32; by the heuristic of
        its authors' later program 0.0002 x pixels / batch size, and 1 for its 'paper256'.
      r1_every: R1 is computed once every `r1_every` steps, from `start_step` on, with `r1_every` times its weight
        (Karras et al., 2020, section 3.1). One update has all terms of a step, so Adam's settings need no correction.
      lecam_weight: the weight of LeCAM; 0 trains without LeCAM. It uses the running means from before the step.
      adaptive_layer: name of the kernel in the decoder's last layer. VQGAN's adaptive weight, measured there, then
        multiplies `weight`. Only the part that makes the image counts, not the part for log scales, which the
        discriminator does not see. None does not change `weight`.
    """

    def __init__(
        self, discriminator: Discriminator, learner: MakeLearner, *,
        loss: Kind = "non_saturating", weight: float = 0.1, start_step: int = 0, r1_weight: float = 10.0,
        r1_every: int = 16, lecam_weight: float = 0.0, adaptive_layer: str | None = None,
    ):
        require(loss in get_args(Kind), "loss", f"one of {get_args(Kind)}", loss)
        self.weights = {"adversarial": weight, "r1": r1_weight, "lecam": lecam_weight}
        for name, value in self.weights.items():
            require(value >= 0, "weight" if name == "adversarial" else f"{name}_weight", "at least 0", value)
        require_step_count("start_step", start_step, 0)
        check_positive(r1_every=r1_every)
        assert isinstance(discriminator, nn.Module)
        self.discriminator, self.loss = discriminator, loss
        self.start_step, self.r1_every, self.adaptive_layer = start_step, r1_every, adaptive_layer
        self.learner = learner(name=NAME, module=discriminator, start_step=start_step)

    def statistics(self) -> Spec:
        """LeCAM's running means."""
        return {f"{NAME}/{name}": Leaf((), Constant(0.0)) for name in _MEANS if self.weights["lecam"]}

    def check_model(self, model: nn.Module, image_size: int) -> None:
        """Raises ValueError unless the discriminator and the adaptive layer fit the tokenizer and this image size."""
        if self.discriminator.image_size != image_size:
            raise ValueError(f"image_size of the discriminator must be the tokenizer's {image_size}, "
                             f"got {self.discriminator.image_size}")
        names = [name for name in spec(model) if name.startswith("decoder/")]
        if self.adaptive_layer is not None and self.adaptive_layer not in names:
            raise ValueError(f"adaptive_layer must be None or a parameter of the decoder, one of {', '.join(names)}; "
                             f"got {self.adaptive_layer!r}")

    def program(self, step: int) -> str:
        """The name of the program that makes a step."""
        since_start = step - self.start_step
        if since_start < 0:
            return TRAIN_BEFORE_ADVERSARY
        return TRAIN_WITH_R1 if self.weights["r1"] and since_start % self.r1_every == 0 else TRAIN

    def host_scalars(self, step: int) -> dict[str, float]:
        """The weights of the terms in use."""
        weights = {f"weight/{name}": weight for name, weight in self.weights.items() if weight}
        weights["weight/adversarial"] = self.weights["adversarial"] if step >= self.start_step else 0.0
        return weights

    def step(
        self, params: State, arrays: State, images_BCHW: Tensor, reconstruction_BCHW: Tensor, context: Context,
        program: str,
    ) -> DiscriminatorStep:
        """The losses of both networks, from images and their reconstructions.

        Args:
          params: the discriminator's parameters, leaves of the autograd graph.
          arrays: the whole state.
          images_BCHW: images, about [0, 1].
          reconstruction_BCHW: their reconstructions, with the autograd graph.
          context: the step's context.
          program: the name of the program.
        """
        scalars, context = context.scalars, context.fold(NAME)
        with_r1 = program == TRAIN_WITH_R1
        signed_BCHW = (2 * images_BCHW - 1).requires_grad_(with_r1)  # the units of gamma
        logits_real = self._logits(params, (signed_BCHW + 1) / 2, context)
        logits_fake = self._logits(params, reconstruction_BCHW, context)
        terms = {"loss": discriminator_loss(self.loss, logits_real, logits_fake)}
        loss = terms["loss"]
        if with_r1:
            terms["r1"] = r1_penalty(logits_real, signed_BCHW)
            loss = loss + scalars["weight/r1"] * (self.r1_every / 2) * terms["r1"]
        if self.weights["lecam"]:
            mean_real, mean_fake = (arrays[sections.statistics(NAME) + name] for name in _MEANS)
            terms["lecam"] = lecam_penalty(logits_real, logits_fake, mean_real, mean_fake)
            loss = loss + scalars["weight/lecam"] * terms["lecam"]
        terms |= {"logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}
        metrics = {f"{NAME}/{name}": value.detach() for name, value in terms.items()}
        return DiscriminatorStep(generator_loss(self.loss, logits_fake), loss, metrics)

    def generator_weight(
        self, step: DiscriminatorStep, reconstruction_loss: Tensor, params: State, context: Context,
        image_part: Callable[[str, Tensor], Tensor],
    ) -> Tensor:
        """The weight of the adversarial term in this batch.

        Args:
          step: the discriminator's results on the batch.
          reconstruction_loss: the loss with which the adaptive weight compares the adversarial loss.
          params: the tokenizer's parameters, leaves of the autograd graph.
          context: the step's context.
          image_part: the decoder's method of this name (`vqim.tokenizer.model.Decoder`).
        """
        weight = context.scalars["weight/adversarial"]
        if self.adaptive_layer is None:
            return weight
        part = functools.partial(image_part, self.adaptive_layer.removeprefix("decoder/"))
        return weight * adaptive_weight(reconstruction_loss, step.generator_loss, params[self.adaptive_layer], part)

    def advance(self, arrays: State, computed: Computed, context: Context) -> State:
        """LeCAM's running means after a step, by their names in the state."""
        if not self.weights["lecam"]:
            return {}
        # The means start from the first batch's logits.
        share = torch.where(context.scalars["step"] == self.start_step, 1.0, 1 - LECAM_DECAY)
        found = {}
        for name in _MEANS:
            running = arrays[sections.statistics(NAME) + name]
            found[sections.statistics(NAME) + name] = (
                running + share * (computed.metrics[f"{NAME}/{name}"] - running))
        return found

    def _logits(self, params: State, images_BCHW: Tensor, context: Context) -> Tensor:
        assert isinstance(self.discriminator, nn.Module)
        return apply(self.discriminator.forward, params, images_BCHW, context)
