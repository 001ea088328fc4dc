"""Frozen features of images, one vector for each layer, for linear probes.

    B batch, L layers, D features, C image channels, H W image size
"""
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.prior import Featuring
from vqim.frozen.from_run import FromRun
from vqim.nn.module import apply
from vqim.prior.objective import MakePrior
from vqim.state.leaf import Spec, State, prefixed, select
from vqim.tokenizer.model import ImageTokenizer, images_to_float


class Features(Protocol):
    """A frozen network (`vqim.contracts.frozen.Frozen`) that turns batches into features.

    Attributes:
      image_size: height and width of the images.
      num_layers: L, the number of layers.
      width: D, the number of features, the same in every layer.
    """

    image_size: int
    num_layers: int
    width: int

    def init_spec(self) -> Spec:
        """The frozen arrays that it needs."""
        ...

    def __call__(self, arrays: State, batch: dict[str, Tensor], *, context: Context) -> Tensor:
        """Features [L, B, D], float32."""
        ...


class PriorFeatures:
    """Every block's output of a trained prior, averaged over the tokens of an image. ViT-VQGAN section 4.2.

    Args:
      tokenizer: built as the prior's run built it.
      prior: makes the network, called with `grid` and `num_classes`.
      num_classes: the number of classes with which the prior was trained. The prior is not told the labels here.
      run: the directory of the prior's run, whose checkpoints also hold the tokenizer.
    """

    def __init__(self, tokenizer: ImageTokenizer, prior: MakePrior, num_classes: int, run: str):
        self.tokenizer = tokenizer
        self.prior = prior(grid=tokenizer.grid, num_classes=num_classes)
        if not isinstance(self.prior, Featuring):
            raise ValueError(f"prior must give features of its layers, {type(self.prior).__name__} gives none")
        self.image_size = tokenizer.image_size
        self.num_layers, self.width = self.prior.num_layers, self.prior.width
        assert isinstance(self.prior, nn.Module)
        self._networks = {"tokenizer/": FromRun(self.tokenizer, run), "prior/": FromRun(self.prior, run, "prior")}

    def init_spec(self) -> Spec:
        """The arrays of both networks."""
        spec: Spec = {}
        for prefix, network in self._networks.items():
            spec |= prefixed(prefix, network.init_spec())
        return spec

    def __call__(self, arrays: State, batch: dict[str, Tensor], *, context: Context) -> Tensor:
        """See `Features`."""
        assert isinstance(self.prior, Featuring)
        with torch.no_grad():
            if "tokens" in batch:
                tokens_BNK = batch["tokens"]
            else:
                tokens_BNK = apply(
                    self.tokenizer.tokens, select(arrays, "tokenizer/"), images_to_float(batch["images"]), context)
            return apply(self.prior.features, select(arrays, "prior/"), tokens_BNK, context)


class PixelFeatures:
    """The image itself, as a baseline: what a probe reaches without a model.

    Args:
      image_size: height and width of the images.
    """

    num_layers = 1

    def __init__(self, image_size: int):
        self.image_size, self.width = image_size, 3 * image_size**2

    def init_spec(self) -> Spec:
        """No arrays."""
        return {}

    def __call__(self, arrays: State, batch: dict[str, Tensor], *, context: Context) -> Tensor:
        """See `Features`; values in [0, 1]."""
        return rearrange(images_to_float(batch["images"]), "b c h w -> 1 b (c h w)")
