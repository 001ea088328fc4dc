"""A loss term on another network's features: mean squared differences of AlexNet's last feature map.

    B batch, C channels, H W image size
"""
from collections.abc import Mapping

import gin
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.frozen import Frozen
from vqim.frozen.alexnet import AlexNet
from vqim.state.leaf import State
from vqim.tokenizer.model import Reconstruction


class FeatureTerm:
    """E (f(x) - f(x'))^2."""

    name = "features"

    def __init__(self, weight: float, network: AlexNet):
        self.weight, self._network = weight, network
        self.frozen: Mapping[str, Frozen] = {"alexnet": network}

    def __call__(
        self, images_BCHW: Tensor, reconstruction: Reconstruction, frozen: Mapping[str, State], context: Context,
    ) -> Tensor:
        features, others = (self._network(frozen["alexnet"], images, context=context)[-1]
                            for images in (images_BCHW, reconstruction.mean_BCHW))
        return (features - others).square().mean()


gin.register(FeatureTerm, module="plugin")
