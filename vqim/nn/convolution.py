"""Convolutions, group normalisation, and the blocks of convolutional tokenizers.

The blocks are those of VQGAN (Esser et al., 2021, Table 7), which MoVQ and SeQ-GAN build on.

    B batch, C channels, H height, W width; O I output and input channels of a kernel; Z h w: a condition
"""
from typing import Protocol

import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.nn.attention import SelfAttention
from vqim.nn.layers import check_positive, check_rate, dropout
from vqim.nn.module import parameter
from vqim.state.init import Constant, Init, Uniform


class Conv2d(nn.Module):
    """A convolution with bias, in the context's dtype.

    Args:
      num_inputs: the number of input channels.
      num_outputs: the number of output channels.
      kernel_size: height and width of the kernel.
      stride: the stride in both directions.
      padding: the number of zeros to the (left, right, top, bottom) of the image; by default kernel_size // 2 on every
        side, which keeps the image size for an odd kernel size and stride 1.
      init: initial values of the kernel; the bias is then zero. By default both are drawn from U(-b, b),
        b = 1 / sqrt(num_inputs * kernel_size^2). PyTorch's convolutions start so (kaiming_uniform_ with a = sqrt(5)),
        and therefore all published CNN tokenizers.
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, kernel_size: int, stride: int = 1,
        padding: tuple[int, int, int, int] | None = None, init: Init | None = None,
    ):
        super().__init__()
        check_positive(num_inputs=num_inputs, num_outputs=num_outputs, kernel_size=kernel_size, stride=stride)
        self.stride = stride
        self.padding = (kernel_size // 2,) * 4 if padding is None else padding
        default = Uniform((num_inputs * kernel_size**2) ** -0.5)
        self.kernel_OIHW = parameter(
            (num_outputs, num_inputs, kernel_size, kernel_size), init or default, "out", "in", "kh", "kw")
        self.bias_O = parameter((num_outputs,), default if init is None else Constant(0.0), "features")

    def forward(self, x_BCHW: Tensor, context: Context) -> Tensor:
        """[B, num_inputs, H, W] to [B, num_outputs, (H + padding - kernel_size) // stride + 1, ... W]."""
        dtype = context.dtype
        left, right, top, bottom = self.padding
        x_BCHW = x_BCHW.to(dtype)
        if (left, top) != (right, bottom):
            x_BCHW, left, top = F.pad(x_BCHW, self.padding), 0, 0
        return F.conv2d(x_BCHW, self.kernel_OIHW.to(dtype), self.bias_O.to(dtype), self.stride, (top, left))


class Norm(Protocol):
    """A normalisation that may use a condition: MoVQ's, for example, is modulated by the codes' vectors."""

    def __call__(self, x_BCHW: Tensor, context: Context, condition_BZhw: Tensor | None = None) -> Tensor:
        """[B, C, H, W] to the same shape; the image size is a multiple of the condition's size."""
        ...


class MakeNorm(Protocol):
    """A normalisation's class, with its other arguments bound."""

    def __call__(self, num_features: int) -> Norm: ...


class MakeAttention(Protocol):
    """The class of a block with attention over an image, with its other arguments bound."""

    def __call__(self, num_features: int, *, norm: MakeNorm) -> "AttentionBlock": ...


class GroupNorm(nn.Module):
    """Normalises groups of channels over the image (Wu and He, 2018), in float32; returns the context's dtype."""

    def __init__(self, num_features: int, num_groups: int = 32, eps: float = 1e-6):
        super().__init__()
        check_positive(num_features=num_features, num_groups=num_groups)
        if num_features % num_groups:
            raise ValueError(f"the number of channels must be a multiple of {num_groups}, the groups of each "
                             f"normalisation; got {num_features}")
        self.num_groups, self.eps = num_groups, eps
        self.gain_C = parameter((num_features,), Constant(1.0), "features")
        self.bias_C = parameter((num_features,), Constant(0.0), "features")

    def forward(self, x_BCHW: Tensor, context: Context, condition_BZhw: Tensor | None = None) -> Tensor:
        """See `Norm`; the condition is ignored."""
        return F.group_norm(x_BCHW.float(), self.num_groups, self.gain_C, self.bias_C, self.eps).to(context.dtype)


class SpatialNorm(nn.Module):
    """MoVQ's spatially conditional normalisation (Zheng et al., 2022, equation 4): scale and shift for every point.

    scale(condition) * GroupNorm(x) + shift(condition), by 1x1 convolutions of the condition, whose pixels are repeated
    up to x's size. The group normalisation keeps VQGAN's own gain and bias, and the scale is that of equation (4), not
    1 + it, as in the published code (MoVQGAN; diffusers). Not published is that the scale's bias starts at one: at
    first this is close to the plain group normalisation.

    Args:
      num_features: the number of channels.
      condition_width: Z, the width of the codes' vectors.
    """

    def __init__(self, num_features: int, condition_width: int):
        super().__init__()
        self.norm = GroupNorm(num_features)
        self.scale = Conv2d(condition_width, num_features, kernel_size=1)
        self.shift = Conv2d(condition_width, num_features, kernel_size=1)
        self.scale.bias_O = parameter((num_features,), Constant(1.0), "features")

    def forward(self, x_BCHW: Tensor, context: Context, condition_BZhw: Tensor | None = None) -> Tensor:
        """See `Norm`; ValueError without a condition, or with one whose size does not divide the image's."""
        if condition_BZhw is None:
            raise ValueError("condition_BZhw must be the codes' vectors, got None: encoders have no condition, and "
                             "need another norm")
        (height, width), (h, w) = x_BCHW.shape[2:], condition_BZhw.shape[2:]
        if height % h or width % w or height // h != width // w:
            raise ValueError(f"condition_BZhw must have a size that divides the image's {height}x{width} by one "
                             f"number, got {h}x{w}")
        # A 1x1 convolution of repeated pixels is the repetition of its outputs, for a fraction of the work.
        scale_BChw, shift_BChw = self.scale(condition_BZhw, context), self.shift(condition_BZhw, context)
        scale_BCHW, shift_BCHW = (repeat_pixels(x_BChw, height // h) for x_BChw in (scale_BChw, shift_BChw))
        return self.norm(x_BCHW, context) * scale_BCHW + shift_BCHW


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))); a 1x1 convolution on the shortcut where the channels change.

    Dropout acts before the second convolution.
    """

    def __init__(self, num_inputs: int, num_outputs: int, dropout_rate: float = 0.0, norm: MakeNorm = GroupNorm):
        super().__init__()
        check_rate("dropout_rate", dropout_rate)
        self.dropout_rate = dropout_rate
        self.norm_1 = norm(num_inputs)
        self.conv_1 = Conv2d(num_inputs, num_outputs, kernel_size=3)
        self.norm_2 = norm(num_outputs)
        self.conv_2 = Conv2d(num_outputs, num_outputs, kernel_size=3)
        self.shortcut = None if num_inputs == num_outputs else Conv2d(num_inputs, num_outputs, kernel_size=1)

    def forward(self, x_BCHW: Tensor, context: Context, condition_BZhw: Tensor | None = None) -> Tensor:
        """[B, num_inputs, H, W] to [B, num_outputs, H, W]; the normalisations use the condition."""
        hidden_BCHW = self.conv_1(F.silu(self.norm_1(x_BCHW, context, condition_BZhw)), context)
        hidden_BCHW = F.silu(self.norm_2(hidden_BCHW, context, condition_BZhw))
        hidden_BCHW = dropout(hidden_BCHW, self.dropout_rate, context, "residual block")
        if self.shortcut is not None:
            x_BCHW = self.shortcut(x_BCHW, context)
        return x_BCHW + self.conv_2(hidden_BCHW, context)


class AttentionBlock(nn.Module):
    """x + attention(norm(x)), one head over all positions of the image; the identity before training."""

    def __init__(self, num_features: int, *, norm: MakeNorm = GroupNorm):
        super().__init__()
        self.norm = norm(num_features)
        self.attention = SelfAttention(num_features, 1, causal=False)

    def forward(self, x_BCHW: Tensor, context: Context, condition_BZhw: Tensor | None = None) -> Tensor:
        """[B, C, H, W] to the same shape; the normalisation uses the condition."""
        positions_BTC = rearrange(self.norm(x_BCHW, context, condition_BZhw), "b c h w -> b (h w) c")
        attended_BTC = self.attention(positions_BTC, context)
        return x_BCHW + rearrange(attended_BTC, "b (h w) c -> b c h w", h=x_BCHW.shape[2])


class Downsample(nn.Module):
    """Halves height and width: a 3x3 convolution of stride 2, with one pixel of padding right and below."""

    def __init__(self, num_inputs: int, num_outputs: int):
        super().__init__()
        self.conv = Conv2d(num_inputs, num_outputs, kernel_size=3, stride=2, padding=(0, 1, 0, 1))

    def forward(self, x_BCHW: Tensor, context: Context) -> Tensor:
        """[B, num_inputs, H, W] to [B, num_outputs, H / 2, W / 2]."""
        return self.conv(x_BCHW, context)


class Upsample(nn.Module):
    """Doubles height and width: repeats every pixel four times, then a 3x3 convolution."""

    def __init__(self, num_inputs: int, num_outputs: int):
        super().__init__()
        self.conv = Conv2d(num_inputs, num_outputs, kernel_size=3)

    def forward(self, x_BCHW: Tensor, context: Context) -> Tensor:
        """[B, num_inputs, H, W] to [B, num_outputs, 2 H, 2 W]."""
        return self.conv(repeat_pixels(x_BCHW), context)


def repeat_pixels(x_BCHW: Tensor, times: int = 2) -> Tensor:
    """Nearest-neighbour upsampling by `times`; F.interpolate's gradient would leave an XLA device for the CPU."""
    return repeat(x_BCHW, "b c h w -> b c (h p) (w q)", p=times, q=times)
