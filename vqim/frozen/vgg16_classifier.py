"""VGG16 with its classifying layers, from torchvision's file: features and logits for SeQ-GAN's equation (4).

    B batch, C channels, H W image size, n p size of the last features before and after pooling, Y classes, D features;
    O I output and input features
"""
import dataclasses
import functools

import numpy as np
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.frozen import Classified
from vqim.frozen.trunk import input_spec
from vqim.frozen.vgg16 import vgg16_features
from vqim.nn.layers import check_positive
from vqim.state.init import FromArray
from vqim.state.leaf import Leaf, Spec, State
from vqim.third_party import lpips, torchvision_models

MIN_SIZE = 32  # five poolings leave one feature
NUM_CLASSES = 1000
_POOLED = 7
_DENSE = {"fc1": (512 * _POOLED**2, 4096), "fc2": (4096, 4096), "fc3": (4096, NUM_CLASSES)}
"""Input and output features of the classifying layers."""


@dataclasses.dataclass(frozen=True)
class TorchvisionVGG16:
    """torchvision's VGG16 as a whole, with weights from a file, since no package ships its classifying layers.

    Images keep their size: before the classifying layers, features are averaged to 7x7 positions, as torchvision does.
    That average is a product with a fixed matrix, as adaptive pooling would leave an XLA device.

    Attributes:
      weights_path: the path of a state_dict, such as torchvision's vgg16-397923af.pth (528 MB). FileNotFoundError if
        there is none.
      image_size: height and width of the images, at least 32.
      num_strips: as for `frozen.VGG16`.
    """

    weights_path: str
    image_size: int
    num_strips: int = dataclasses.field(default=1, compare=False)

    def __post_init__(self) -> None:
        check_positive(image_size=self.image_size, num_strips=self.num_strips)
        if self.image_size < MIN_SIZE:
            raise ValueError(f"image_size must be at least {MIN_SIZE} for VGG16's logits, got {self.image_size}")
        torchvision_models.find_weights(self.weights_path, "VGG16")

    @property
    def name(self) -> str:
        """The name of its arrays in the state."""
        return "vgg16_classifier"

    def init_spec(self) -> Spec:
        """The 138 million constants, read from the file when the runtime fills them, and how to pool."""
        pool = functools.partial(mean_matrix, self.image_size // 32, _POOLED)
        spec = input_spec() | {"pool_pn": Leaf(
            (_POOLED, self.image_size // 32), FromArray(pool), ("out", "in"), saved=False)}
        convolutions, num_inputs, position = lpips.TRUNKS["vgg16"], 3, 0
        for stage, stage_convolutions in enumerate(convolutions, start=1):
            for i, (kernel_size, num_outputs) in enumerate(stage_convolutions, start=1):
                there, here = f"features.{position}", f"conv{stage}_{i}"
                spec[f"{here}/kernel_OIHW"] = self._leaf(
                    f"{there}.weight", (num_outputs, num_inputs, kernel_size, kernel_size), ("out", "in", "kh", "kw"))
                spec[f"{here}/bias_O"] = self._leaf(f"{there}.bias", (num_outputs,), ("features",))
                num_inputs, position = num_outputs, position + 2  # a rectifier lies between
            position += 1  # a pooling
        for i, (here, (num_inputs, num_outputs)) in enumerate(_DENSE.items()):
            there = f"classifier.{3 * i}"  # a rectifier and dropout lie between
            spec[f"{here}/kernel_OI"] = self._leaf(f"{there}.weight", (num_outputs, num_inputs), ("out", "in"))
            spec[f"{here}/bias_O"] = self._leaf(f"{there}.bias", (num_outputs,), ("features",))
        return spec

    def __call__(self, arrays: State, images_BCHW: Tensor, *, context: Context) -> Classified:
        """The five feature maps of `vgg16_features`, and the logits without dropout.

        Args:
          arrays: named as in `init_spec`.
          images_BCHW: RGB images in [0, 1] of `image_size`; else ValueError.
          context: its dtype is used for convolutions and classifying layers.
        """
        if images_BCHW.ndim != 4 or images_BCHW.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(f"VGG16's logits with image_size {self.image_size} need images [batch, 3, "
                             f"{self.image_size}, {self.image_size}], got {tuple(images_BCHW.shape)}")
        maps = vgg16_features(arrays, images_BCHW, context.dtype, self.num_strips)
        pool_pn, last_BCnn = arrays["pool_pn"], F.max_pool2d(maps[-1], kernel_size=2).float()
        x_BD = rearrange(pool_pn @ last_BCnn @ pool_pn.mT, "b c p q -> b (c p q)").to(context.dtype)
        for name in _DENSE:
            kernel_OI, bias_O = (arrays[f"{name}/{part}"].to(context.dtype) for part in ("kernel_OI", "bias_O"))
            x_BD = F.linear(x_BD if name == "fc1" else F.relu(x_BD), kernel_OI, bias_O)
        return Classified(tuple(maps), x_BD.float())

    def _leaf(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Leaf:
        return Leaf(shape, FromArray(functools.partial(self._read, name)), axes, saved=False)

    def _read(self, name: str) -> np.ndarray:
        weights = torchvision_models.read_weights(self.weights_path, "VGG16")
        if name not in weights:
            raise ValueError(f"{self.weights_path} has no array {name}, which torchvision's VGG16 has; it has "
                             f"{len(weights)} arrays, {', '.join(list(weights)[:3])} ...")
        return weights[name].copy()  # the cached arrays must not become a training state


def mean_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Adaptive average pooling along one side: float32 [size_out, size_in].

    Output i is the mean of the inputs from floor(i * size_in / size_out) up to, not including, the rounded-up
    (i + 1) * size_in / size_out.
    """
    rows = np.zeros((size_out, size_in), np.float32)
    for i, row in enumerate(rows):
        first, end = i * size_in // size_out, -(-(i + 1) * size_in // size_out)
        row[first:end] = 1 / (end - first)
    return rows
