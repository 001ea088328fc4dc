"""Frozen features of pictures, one vector a layer, for linear probes.

    B batch, L layers, D features, C image channels, H W image size
"""
from collections.abc import Callable
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from vqim.nn.context import Context
from vqim.nn.module import apply
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.state.leaf import Spec, State, prefixed, select
from vqim.tokenizer.model import ImageTokenizer, images_to_float
from vqim.tokenizer.pretrained import Pretrained


class Features(Protocol):
    """Turns pictures into features.

    Attributes:
      image_size: of the pictures.
      num_layers: L.
      width: D, the same in every layer.
    """

    image_size: int
    num_layers: int
    width: int

    def init_spec(self) -> Spec:
        """The frozen arrays that it needs."""
        ...

    def __call__(self, frozen: State, batch: dict[str, Tensor], context: Context) -> Tensor:
        """Features [L, B, D], float32."""
        ...


class PriorFeatures:
    """Every block's output of a trained prior, averaged over the tokens of a picture. ViT-VQGAN section 4.2.

    Args:
      tokenizer: built as the prior's run built it.
      prior: called with `grid` and `num_classes`; makes the network.
      num_classes: that the prior was trained with. Their labels are not told it here.
      run: directory of the prior's run, whose checkpoints also hold the tokenizer.
    """

    def __init__(
        self, tokenizer: ImageTokenizer, prior: Callable[..., AutoregressivePrior], num_classes: int, run: str,
    ):
        self.tokenizer = tokenizer
        self.prior = prior(grid=tokenizer.grid, num_classes=num_classes)
        self.image_size = tokenizer.image_size
        self.num_layers, self.width = self.prior.num_layers, self.prior.width
        self._pretrained = {
            "tokenizer/": Pretrained(self.tokenizer, run, "frozen/tokenizer/"),
            "prior/": Pretrained(self.prior, run, "params/prior/")}

    def init_spec(self) -> Spec:
        """Both networks."""
        spec: Spec = {}
        for prefix, pretrained in self._pretrained.items():
            spec |= prefixed(prefix, pretrained.init_spec())
        return spec

    def __call__(self, frozen: State, batch: dict[str, Tensor], context: Context) -> Tensor:
        """See `Features`."""
        with torch.no_grad():
            if "tokens" in batch:
                tokens_BNK = batch["tokens"]
            else:
                tokens_BNK = apply(
                    self.tokenizer.tokens, select(frozen, "tokenizer/"), images_to_float(batch["images"]),
                    Context(context.kernels))
            return apply(self.prior.features, select(frozen, "prior/"), tokens_BNK, context)


class PixelFeatures:
    """The picture itself: what a probe reaches without any model.

    Args:
      image_size: height and width of the pictures.
    """

    num_layers = 1

    def __init__(self, image_size: int):
        self.image_size, self.width = image_size, 3 * image_size**2

    def init_spec(self) -> Spec:
        """Nothing."""
        return {}

    def __call__(self, frozen: State, batch: dict[str, Tensor], context: Context) -> Tensor:
        """See `Features`; values in [0, 1]."""
        return rearrange(images_to_float(batch["images"]), "b c h w -> 1 b (c h w)")
