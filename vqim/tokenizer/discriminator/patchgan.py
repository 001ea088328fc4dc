"""The PatchGAN discriminator of Isola et al. (2017), section 3.2.2 and appendix 6.1.2, as VQGAN trains with it.

ViT-VQGAN's Table 4 compares it with StyleGAN2's. Details that the paper leaves open are as in taming-transformers'
`NLayerDiscriminator`, which follows pytorch-CycleGAN-and-pix2pix.

    B batch, C channels, H W image size, h w patches; I O input and output channels of a kernel
"""
import dataclasses
import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.nn.layers import check_positive
from vqim.nn.module import parameter
from vqim.state.init import Constant, Index, Normal
from vqim.tokenizer.discriminator.blocks import convolve_halving

_STD = 0.02
_SLOPE = 0.2
_EPSILON = 1e-5


class PatchGANDiscriminator(nn.Module):
    """Maps images to a logit of being real for each overlapping patch (70x70 pixels with three halvings).

    It has 4x4 convolutions with one zero around the image: `num_halvings` of stride 2, then two of stride 1. Between
    them are leaky rectifiers and batch normalisation, but no normalisation after the first and the last convolution.

    Batch normalisation always uses the statistics of the batch that it is given, over all devices. It keeps no running
    statistics, since the discriminator is used only in training steps. Real and reconstructed images belong in
    different calls, as in taming-transformers.

    Args:
      image_size: height and width of images, in pixels.
      base_channels: the number of channels after the first convolution; it doubles after each, up to eight times this.
      num_halvings: the number of convolutions of stride 2.
      num_channels: the number of image channels.
    """

    def __init__(self, image_size: int, base_channels: int = 64, num_halvings: int = 3, num_channels: int = 3):
        super().__init__()
        check_positive(image_size=image_size, base_channels=base_channels, num_halvings=num_halvings,
                       num_channels=num_channels)
        factor = 2**num_halvings
        if image_size % factor or image_size < 3 * factor:
            raise ValueError(f"image_size must be a multiple of {factor}, by which num_halvings divides it, "
                             f"and at least {3 * factor}; got {image_size}")
        self.image_size = image_size
        channels = [base_channels * min(2**n, 8) for n in range(num_halvings + 1)]
        self.first_kernel_OIHW = _kernel(num_channels, base_channels)
        self.first_bias_O = parameter((base_channels,), Constant(0.0), "features")
        self.layers = nn.ModuleList(
            NormalisedConvolution(num_inputs, num_outputs, halving=n < num_halvings)
            for n, (num_inputs, num_outputs) in enumerate(itertools.pairwise(channels), start=1))
        self.last_kernel_OIHW = _kernel(channels[-1], 1)
        self.last_bias_O = parameter((1,), Constant(0.0), "features")

    def check_batch(self, batch_size: int) -> None:
        """Accepts any batch size."""

    def forward(self, images_BCHW: Tensor, context: Context) -> Tensor:
        """Images in [0, 1] to logits_Bhw, h = w = image_size / 2^num_halvings - 2, float32 (or the context's float64).

        Raises:
          ValueError: the images are of another size.
        """
        if tuple(images_BCHW.shape[2:]) != (self.image_size, self.image_size):
            raise ValueError(f"images must be {self.image_size}x{self.image_size}, the discriminator's image_size; "
                             f"got {tuple(images_BCHW.shape)}")
        dtype = context.dtype
        x_BCHW = convolve_halving((2 * images_BCHW - 1).to(dtype), self.first_kernel_OIHW.to(dtype))
        x_BCHW = F.leaky_relu(x_BCHW + self.first_bias_O.to(dtype)[:, None, None], _SLOPE)
        for layer in self.layers:
            x_BCHW = layer(x_BCHW, context)
        logits_B1hw = F.conv2d(x_BCHW, self.last_kernel_OIHW.to(dtype), padding=1)
        return logits_B1hw[:, 0].to(torch.promote_types(dtype, torch.float32)) + self.last_bias_O


class NormalisedConvolution(nn.Module):
    """A 4x4 convolution without bias, batch normalisation, leaky rectifier.

    Args:
      num_inputs: the number of input channels.
      num_outputs: the number of output channels.
      halving: whether the stride is 2; otherwise height and width become one less.
    """

    def __init__(self, num_inputs: int, num_outputs: int, *, halving: bool):
        super().__init__()
        self.halving = halving
        self.kernel_OIHW = _kernel(num_inputs, num_outputs)
        self.gain_O = parameter((num_outputs,), NormalAround(1.0, _STD), "features")
        self.bias_O = parameter((num_outputs,), Constant(0.0), "features")

    def forward(self, x_BCHW: Tensor, context: Context) -> Tensor:
        """[B, I, H, W] to [B, O, h, w]."""
        kernel_OIHW = self.kernel_OIHW.to(context.dtype)
        x_BCHW = convolve_halving(x_BCHW, kernel_OIHW) if self.halving else F.conv2d(x_BCHW, kernel_OIHW, padding=1)
        return F.leaky_relu(batch_norm(x_BCHW, self.gain_O, self.bias_O), _SLOPE)


def batch_norm(x_BCHW: Tensor, gain_C: Tensor, bias_C: Tensor) -> Tensor:
    """Normalises channels by their mean and variance over the batch, computed in float32 (float64 for float64)."""
    wide_BCHW = x_BCHW.to(torch.promote_types(x_BCHW.dtype, torch.float32))
    centred_BCHW = wide_BCHW - wide_BCHW.mean((0, 2, 3), keepdim=True)
    scale_C = gain_C * torch.rsqrt(centred_BCHW.square().mean((0, 2, 3)) + _EPSILON)
    return (centred_BCHW * scale_C[:, None, None] + bias_C[:, None, None]).to(x_BCHW.dtype)


@dataclasses.dataclass(frozen=True)
class NormalAround:
    """Independent draws from N(mean, std^2): pix2pix initialises the gains of its normalisations so."""

    mean: float
    std: float

    def __call__(self, name: str, shape: tuple[int, ...], seed: int, index: Index) -> np.ndarray:
        return np.float32(self.mean) + Normal(self.std)(name, shape, seed, index)


def _kernel(num_inputs: int, num_outputs: int) -> nn.Parameter:
    return parameter((num_outputs, num_inputs, 4, 4), Normal(_STD), "out", "in", "kh", "kw")
