"""Dense layers, layer normalisation and dropout.

    D features, I inputs of a matrix, O outputs of a matrix; ... any leading dimensions
"""
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.nn.module import parameter
from vqim.state.init import Constant, Init, xavier_uniform


class Dense(nn.Module):
    """x @ kernel + bias, in the context's dtype."""

    def __init__(self, num_inputs: int, num_outputs: int, init: Init | None = None):
        super().__init__()
        init = init or xavier_uniform(num_inputs, num_outputs)
        self.kernel_IO = parameter((num_inputs, num_outputs), init, "in", "out")
        self.bias_O = parameter((num_outputs,), Constant(0.0), "features")

    def forward(self, x_I: Tensor, context: Context) -> Tensor:
        return context.kernels.linear(x_I.to(context.dtype), self.kernel_IO, self.bias_O)


class Head(Dense):
    """A dense layer whose outputs have parts, of which one at a time is computed.

    Args:
      num_inputs: I.
      sizes: how many outputs each part has.
      init: as in `Dense`.
    """

    def __init__(self, num_inputs: int, sizes: Sequence[int], init: Init | None = None):
        super().__init__(num_inputs, sum(sizes), init)
        self.sizes = list(sizes)

    def part(self, x_I: Tensor, number: int, context: Context) -> Tensor:
        """The outputs of one part, in the context's dtype. The kernel may be `cut` already, and laid out."""
        kernels_IO: Any = self.kernel_IO
        kernel_IO = (kernels_IO if isinstance(kernels_IO, list) else self.cut(kernels_IO))[number]
        return context.kernels.linear(x_I.to(context.dtype), kernel_IO, self.cut(self.bias_O)[number])

    def cut(self, array_O: Tensor) -> Sequence[Tensor]:
        """The parts' columns of the kernel, or of the bias."""
        return array_O.split(self.sizes, -1)


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension, computed in float32, returned in the context's dtype."""

    def __init__(self, num_features: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.gain_D = parameter((num_features,), Constant(1.0), "features")
        self.bias_D = parameter((num_features,), Constant(0.0), "features")

    def forward(self, x_D: Tensor, context: Context) -> Tensor:
        return context.kernels.layer_norm(x_D.float(), self.gain_D, self.bias_D, self.eps).to(context.dtype)


def dropout(x: Tensor, rate: float, context: Context, purpose: str) -> Tensor:
    """Zeroes entries with probability `rate` and scales the others by 1 / (1 - rate); the identity in evaluation."""
    key = context.draw_key(purpose) if rate else None
    return x if key is None else context.kernels.dropout(x, key, rate)


def gelu_dropout(x: Tensor, rate: float, context: Context, purpose: str) -> Tensor:
    """GELU with the error function, then `dropout`."""
    return context.kernels.gelu_dropout(x, context.draw_key(purpose) if rate else None, rate)


def check_rate(name: str, rate: float) -> None:
    """Raises ValueError unless 0 <= rate < 1."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name} must be at least 0 and below 1, got {rate}")


def check_positive(**values: int) -> None:
    """Raises ValueError, naming the argument, unless every value is a positive whole number."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
