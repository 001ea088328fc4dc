"""Loss terms that compare reconstructions with their images. ViT-VQGAN section 3.3.

A term is a component: a gin file lists them, `terms = [@tokenizer.L2(), @tokenizer.Perceptual()]`, and one binding
changes a weight. Losses that need the same network on the same images belong in one term, since eager torch would run
the network once for each term.

    B batch, C image channels, H W image size
"""
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.frozen import Frozen
from vqim.contracts.optimizer import Schedule
from vqim.frozen.lpips import Lpips
from vqim.state.leaf import State
from vqim.tokenizer.losses import logit_laplace
from vqim.tokenizer.model import Reconstruction


class Term(Protocol):
    """A part of the tokenizer's loss, before its weight.

    Attributes:
      name: its name in the summaries, `loss/<name>`.
      weight: a number, or a schedule. With the number 0 the term is not computed.
      frozen: frozen networks that it uses, by name.
    """

    name: str
    weight: float | Schedule
    frozen: Mapping[str, Frozen]

    def __call__(
        self, images_BCHW: Tensor, reconstruction: Reconstruction, frozen: Mapping[str, State], context: Context,
    ) -> Tensor:
        """A scalar: the mean over the batch.

        Args:
          images_BCHW: images in [0, 1].
          reconstruction: the decoder's output, with its autograd graph.
          frozen: the arrays of `self.frozen`.
          context: the tokenizer's context.
        """
        ...


class L2:
    """The mean squared error over all values of an image.

    Args:
      weight: weight of the term, 1.0 in the paper.
    """

    name = "l2"
    frozen: Mapping[str, Frozen] = {}

    def __init__(self, weight: float | Schedule = 1.0):
        self.weight = checked_weight(weight)

    def __call__(
        self, images_BCHW: Tensor, reconstruction: Reconstruction, frozen: Mapping[str, State], context: Context,
    ) -> Tensor:
        """See `Term`."""
        return (images_BCHW - reconstruction.mean_BCHW).square().mean()


class L1:
    """The mean absolute error over all values of an image, in [0, 1].

    Args:
      weight: weight of the term. VQGAN's released baseline has 1 for images in [-1, 1], that is 2 here.
    """

    name = "l1"
    frozen: Mapping[str, Frozen] = {}

    def __init__(self, weight: float | Schedule = 2.0):
        self.weight = checked_weight(weight)

    def __call__(
        self, images_BCHW: Tensor, reconstruction: Reconstruction, frozen: Mapping[str, State], context: Context,
    ) -> Tensor:
        """See `Term`."""
        return (images_BCHW - reconstruction.mean_BCHW).abs().mean()


class LogitLaplace:
    """The negative log-likelihood under the decoder's logit-Laplace distribution, in nats per value.

    Args:
      weight: weight of the term, 0.1 in the paper.
    """

    name = "logit_laplace"
    frozen: Mapping[str, Frozen] = {}

    def __init__(self, weight: float | Schedule = 0.1):
        self.weight = checked_weight(weight)

    def __call__(
        self, images_BCHW: Tensor, reconstruction: Reconstruction, frozen: Mapping[str, State], context: Context,
    ) -> Tensor:
        """See `Term`; ValueError for a decoder that gives no distribution."""
        if reconstruction.location_BCHW is None or reconstruction.log_scale_BCHW is None:
            raise ValueError("terms has LogitLaplace, but the decoder gives no distribution: leave the term out, or "
                             "take a decoder with logit_laplace = True")
        return logit_laplace(images_BCHW, reconstruction.location_BCHW, reconstruction.log_scale_BCHW).mean()


class Perceptual:
    """LPIPS, the perceptual distance that ViT-VQGAN trains with ("based on VGG network").

    Args:
      weight: weight of the term, 0.1 in the paper.
      lpips: the network and its heads; by default on VGG16.
    """

    name = "perceptual"

    def __init__(self, weight: float | Schedule = 0.1, lpips: Lpips | None = None):
        self.weight = checked_weight(weight)
        self._lpips = lpips = lpips or Lpips()
        self.frozen: Mapping[str, Frozen] = {lpips.name: lpips}

    def __call__(
        self, images_BCHW: Tensor, reconstruction: Reconstruction, frozen: Mapping[str, State], context: Context,
    ) -> Tensor:
        """See `Term`."""
        return self._lpips(frozen[self._lpips.name], images_BCHW, reconstruction.mean_BCHW, context=context).mean()


def checked_weight(weight: float | Schedule) -> float | Schedule:
    """The weight; ValueError if it is a number below 0."""
    if not callable(weight) and not weight >= 0:
        raise ValueError(f"weight must be at least 0, or a schedule; got {weight}")
    return weight


def weight_at(weight: float | Schedule, step: int) -> float:
    """The value of a weight at one step."""
    return weight(step) if callable(weight) else weight
