"""LPIPS, the perceptual distance of Zhang et al. (2018), version 0.1.

Tokenizers train with LPIPS on VGG16 (ViT-VQGAN section 3.3). Evaluation also uses LPIPS on AlexNet, which its authors
recommend for this and which is not in any loss. The weights are constants in the state: not trained, not in
checkpoints.

    B batch, C channels, H height, W width; N strips of images
"""
import dataclasses
import functools

import torch
from einops import reduce
from torch import Tensor

from vqim.contracts.context import Context
from vqim.frozen.alexnet import AlexNet
from vqim.frozen.trunk import weight_leaf
from vqim.frozen.vgg16 import VGG16
from vqim.state.leaf import Spec, State
from vqim.third_party import lpips as pretrained

_EPSILON = 1e-10  # added to squared feature norms, which are usually from 1 to 10^6


@dataclasses.dataclass(frozen=True)
class Lpips:
    """A trained network, and weights for its features' channels.

    Attributes:
      trunk: the network, such as `VGG16()` or `AlexNet()`.
    """

    trunk: VGG16 | AlexNet = dataclasses.field(default_factory=VGG16)

    @property
    def name(self) -> str:
        """The name of its arrays in the state and of its distance in summaries: 'lpips' on VGG16, 'lpips_alexnet'."""
        return "lpips" if self.trunk.name == "vgg16" else f"lpips_{self.trunk.name}"

    def init_spec(self) -> Spec:
        """The network's constants, and a weight for every channel of its five feature maps."""
        leaf = weight_leaf(self.trunk.name, self.trunk.weights_path)
        widths = [convolutions[-1][1] for convolutions in pretrained.TRUNKS[self.trunk.name]]
        heads = {f"head{stage}/weight_C": leaf(f"head{stage}/weight_C", (width,), ("features",))
                 for stage, width in enumerate(widths, start=1)}
        return self.trunk.init_spec() | heads

    def __call__(self, arrays: State, a_BCHW: Tensor, b_BCHW: Tensor, *, context: Context) -> Tensor:
        """Distances between the images of two batches, pair by pair (equation 1 of the LPIPS paper).

        At every position in five feature maps, the features are scaled to unit length. Their squared differences are
        weighted by channel, averaged over positions and summed over the maps.

        Args:
          arrays: named as in `init_spec`.
          a_BCHW: RGB images in [0, 1], large enough for the network.
          b_BCHW: the same number of images with the same size; else ValueError.
          context: its dtype is used for the convolutions; all else is float32.

        Returns:
          float32 distances_B, at least 0. The gradient is finite everywhere, also where all features are zero.
        """
        if a_BCHW.shape != b_BCHW.shape:
            raise ValueError(f"the images must be of one shape, got {tuple(a_BCHW.shape)} and {tuple(b_BCHW.shape)}")
        # Two passes instead of one over both, since in training only one of the batches has a backward pass.
        pairs = zip(self.trunk(arrays, a_BCHW, context=context), self.trunk(arrays, b_BCHW, context=context),
                    strict=True)
        distances = [feature_distance(a, b, arrays[f"head{stage}/weight_C"])
                     for stage, (a, b) in enumerate(pairs, start=1)]
        # VGG16's first maps may be strips of images.
        distances = [reduce(distances_N, "(b s) -> b", "mean", b=len(a_BCHW)) for distances_N in distances]
        return functools.reduce(torch.add, distances)


def feature_distance(a_BCHW: Tensor, b_BCHW: Tensor, weight_C: Tensor) -> Tensor:
    """The channel-weighted squared difference of unit-length features, as a mean over positions: float32 [B]."""
    difference_BCHW = _unit_length(a_BCHW.float()) - _unit_length(b_BCHW.float())
    # A sum of products rather than a matrix product: a TPU would round the factors of the latter to bfloat16.
    return (difference_BCHW.square() * weight_C[:, None, None]).sum(1).mean((1, 2))


def _unit_length(x_BCHW: Tensor) -> Tensor:
    """x / |x|, with epsilon inside the root; outside it, the root's gradient at zero would be infinite."""
    return x_BCHW * torch.rsqrt(x_BCHW.square().sum(1, keepdim=True) + _EPSILON)
