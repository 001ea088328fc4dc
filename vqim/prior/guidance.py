"""Classifier-free guidance: how strong it is in each step of a sampler, and the guided logits.

    B images in a batch, G = 2 B: both branches of each image
"""
import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from einops import rearrange, repeat
from torch import Tensor

Shape = Literal["constant", "linear", "cosine"]


@dataclasses.dataclass(frozen=True)
class GuidanceSchedule:
    """How a scale s of guidance changes from the first step of a sampler to the last.

    With p = step / (steps - 1), from 0 to 1, the scale of a step is 1 + (s - 1) f(p^power). 'constant' has f = 1,
    'linear' f(p) = p (MUSE, TiTok), and 'cosine' f(p) = (1 - cos(pi p)) / 2; with a power it is the power-cosine of
    RAR, which has p = step / steps. In the beginning, much guidance takes the variety from the images.

    Attributes:
      shape: 'constant', 'linear' or 'cosine'.
      power: above 1, guidance comes later; below 1, sooner. A constant scale ignores it.
      interval: guides only from one share of the steps to another (Kynkaanniemi et al., 2024). Before and after it the
        scale is 1.
    """

    shape: Shape = "constant"
    power: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            raise ValueError(f"shape must be one of {', '.join(get_args(Shape))}; got {self.shape!r}")
        if not self.power > 0:
            raise ValueError(f"power must be positive, got {self.power}")
        object.__setattr__(self, "interval", tuple(self.interval))  # gin may give a list
        if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ValueError(f"interval must be two shares of the steps, 0 <= begin < end <= 1, got {self.interval}")

    def scale(self, guidance: float, step: int, num_steps: int) -> float:
        """The scale in one step, counted from 0."""
        begin, end = self.interval
        if not begin * num_steps <= step < end * num_steps:
            return 1.0
        p = (step / (num_steps - 1) if num_steps > 1 else 1.0) ** self.power
        factor = {"constant": 1.0, "linear": p, "cosine": (1 - math.cos(math.pi * p)) / 2}[self.shape]
        return 1 + (guidance - 1) * factor


def has_branch(guidance: float) -> bool:
    """Whether the logits without a class are needed; a schedule of the scale 1 is 1 in every step."""
    return guidance != 1.0


def check_guidance(guidance: float) -> None:
    """Raises ValueError unless the scale is in its range."""
    if not guidance >= 0:
        raise ValueError(f"guidance must be at least 0, got {guidance}")


def check_can_guide(guidance: float, prior: Any) -> None:
    """Raises ValueError if there is to be guidance, but the prior has no classes."""
    if has_branch(guidance) and not prior.num_classes:
        raise ValueError(f"guidance must be 1.0 for a prior without classes, got {guidance}")


def check_learnt_without_classes(sampler: Any, prior: Any) -> None:
    """Raises ValueError if a sampler guides and the prior always had the class: it has not learnt the other branch."""
    guidance = getattr(sampler, "guidance", 1.0)
    if has_branch(guidance) and prior.num_classes and not getattr(prior, "class_dropout_rate", 1.0):
        raise ValueError("guidance must be 1.0 for a prior that was trained with every image's class "
                         f"(class_dropout_rate 0): it never learnt what there is without one; got {guidance}")


def guided_logits(
    logits_of: Callable[[Tensor, Tensor], Tensor], tokens_B: Tensor, labels_B: Tensor, scale: Tensor | None,
) -> Tensor:
    """Logits c + (s - 1) (c - u), with c from the class and u without it.

    Args:
      logits_of: logits [G, ..., V] of tokens [G, ...] and labels [G]. An image's two branches are neighbours, so that
        they lie on the same device.
      tokens_B: [B, ...].
      labels_B: [B].
      scale: s, a scalar; None computes c alone.
    """
    if scale is None:
        return logits_of(tokens_B, labels_B)
    labels_G = rearrange([labels_B, torch.full_like(labels_B, -1)], "g b -> (b g)")
    both_G = logits_of(repeat(tokens_B, "b ... -> (b g) ...", g=2), labels_G)
    with_B, without_B = rearrange(both_G, "(b g) ... -> g b ...", g=2)
    guided_B = with_B + (scale - 1) * (with_B - without_B)
    # -inf - -inf is NaN, so codes that a level does not have keep their -inf.
    return torch.where(torch.isinf(with_B), with_B, guided_B)
