"""torchvision's ResNets as classifiers. ViT-VQGAN's Table 6 rejects samples by a ResNet-101.

    B batch, C image channels, H W image size, h w size that the network is given, Y classes; O I H W output
    and input channels, height and width of a kernel
"""
import functools
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from torch import Tensor

from vqim.contracts.context import Context
from vqim.nn.layers import check_positive
from vqim.state.init import FromArray
from vqim.state.leaf import Leaf, Spec, State
from vqim.third_party import torchvision_models as pretrained

DEPTHS = (18, 34, 50, 101, 152)
INPUT_SIZE = 224
# Statistics of ImageNet's images in [0, 1], with which torchvision's weights were trained.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

_AXES = {1: ("features",), 2: ("out", "in"), 4: ("out", "in", "kh", "kw")}


class TorchvisionResNet:
    """torchvision's ResNet with weights from a file, in float32 and evaluation mode.

    Whole images (not crops) are resized to 224x224, and normalised by ImageNet's mean and standard deviation.

    Args:
      weights_path: the path of a state_dict, such as torchvision's resnet101-cd907fc2.pth.
      image_size: height and width of the images.
      depth: the number of layers, 101 in Table 6.
      num_classes: the number of classes. They must be in the order of the data's labels: ImageNet's classes, sorted by
        WordNet id.

    Raises:
      FileNotFoundError: there is no such file.
    """

    def __init__(self, weights_path: str, image_size: int, depth: int = 101, num_classes: int = 1000):
        if depth not in DEPTHS:
            raise ValueError(f"depth must be one of {DEPTHS}, got {depth}")
        check_positive(image_size=image_size, num_classes=num_classes)
        self._path = pretrained.find_weights(weights_path)
        self.image_size, self.num_classes = image_size, num_classes
        self._identity = (self._path, image_size, depth, num_classes)
        with torch.device("meta"):
            self._module = torchvision.models.get_model(f"resnet{depth}", num_classes=num_classes).eval()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TorchvisionResNet) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def init_spec(self) -> Spec:
        """The network's parameters and statistics, read from the file when they are placed, and how to resize."""
        spec: Spec = {  # constants too are state: one made in the program would be sent to the device at every call
            "input/mean_C": _leaf(lambda: np.array(_MEAN, np.float32), (3,)),
            "input/std_C": _leaf(lambda: np.array(_STD, np.float32), (3,)),
            "input/resize_hH": _leaf(
                functools.partial(resize_matrix, self.image_size, INPUT_SIZE), (INPUT_SIZE, self.image_size)),
        }
        for name, tensor in self._module.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                load = functools.partial(self._read, name)
                spec[f"resnet/{name.replace('.', '/')}"] = _leaf(load, tuple(tensor.shape))
        return spec

    def __call__(self, arrays: State, images_BCHW: Tensor, *, context: Context) -> Tensor:
        """Class logits, float32 [B, Y], of images in [0, 1]; the context is ignored."""
        resize_hH = arrays["input/resize_hH"]
        images_BChw = resize_hH @ images_BCHW.float() @ resize_hH.mT
        normalised_BChw = (images_BChw - arrays["input/mean_C"][:, None, None]) / arrays["input/std_C"][:, None, None]
        named = {name.removeprefix("resnet/").replace("/", "."): array
                 for name, array in arrays.items() if name.startswith("resnet/")}
        return torch.func.functional_call(self._module, named, (normalised_BChw,))

    def _read(self, name: str) -> np.ndarray:
        weights = pretrained.read_weights(self._path)
        if name not in weights:
            raise ValueError(f"{self._path} has no array {name}, which a ResNet of this depth has; it has "
                             f"{len(weights)} arrays, {', '.join(list(weights)[:3])} ...")
        return weights[name]


def resize_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Bilinear interpolation, antialiased where it shrinks, along one side: float32 [size_out, size_in].

    A pixel in the result is a mean of those around its centre, weighted by a triangle that is as wide as two pixels on
    the coarser side. Pillow and `torch.nn.functional.interpolate(..., antialias=True)` compute the same.
    """
    scale = size_in / size_out
    width = max(scale, 1.0)
    centres_h = (np.arange(size_out) + 0.5) * scale
    distances_hH = np.abs(np.arange(size_in) + 0.5 - centres_h[:, None]) / width
    weights_hH = np.clip(1 - distances_hH, 0, None)
    return (weights_hH / weights_hH.sum(1, keepdims=True)).astype(np.float32)


def _leaf(load: Callable[[], np.ndarray], shape: tuple[int, ...]) -> Leaf:
    return Leaf(shape, FromArray(load), _AXES[len(shape)], saved=False)
