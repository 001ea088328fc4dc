"""First features of a decoder that reads the codes in its normalisations: MoVQ's F0 (Zheng et al., 2022, Figure 6a).

Each is made for the decoder's width, and gets the codes' latents, of which some need only the size. The paper says
little of them: how the Fourier features' frequencies are drawn, and at which scale, is ours.

    B batch, h w latent size, D the decoder's width, F = D / 2 frequencies
"""
import math
from typing import Protocol

import torch
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.nn.layers import check_positive
from vqim.nn.module import parameter, statistic
from vqim.state.init import Normal


class Initial(Protocol):
    """First features, in place of the codes' latents."""

    def __call__(self, latents_BhwD: Tensor, context: Context) -> Tensor:
        """[B, h, w, D] to the same shape, in the context's dtype."""
        ...


class MakeInitial(Protocol):
    """Its class, with its other arguments bound."""

    def __call__(self, width: int) -> Initial: ...


class FourierFeatures(nn.Module):
    """cos(2 pi B z), sin(2 pi B z) of each position's latent z (Tancik et al., 2020): the paper's best.

    B is [F, D], drawn once from N(0, 1 / D), so that B z is about as large as z, and stays. The projection that makes z
    from the codes is learned, and with it the scale of the frequencies.
    """

    def __init__(self, width: int):
        super().__init__()
        check_even(width, 2)
        self.frequencies_DF = statistic((width, width // 2), Normal(width ** -0.5), "in", "out")

    def forward(self, latents_BhwD: Tensor, context: Context) -> Tensor:
        """See `Initial`; the angles are float32."""
        angles_BhwF = 2 * math.pi * (latents_BhwD.float() @ self.frequencies_DF)
        return torch.cat([angles_BhwF.cos(), angles_BhwF.sin()], -1).to(context.dtype)


class Sinusoids(nn.Module):
    """Sines and cosines of the place, alike for all images: rows in the first half of the channels, then columns.

    In each half, channels 2 i and 2 i + 1 are sin and cos of the row or column times 10000 ^ (-4 i / D), as Vaswani et
    al. (2017) have them in one dimension. The codes are left to the normalisations.
    """

    def __init__(self, width: int):
        super().__init__()
        check_even(width, 4)
        self.width = width

    def forward(self, latents_BhwD: Tensor, context: Context) -> Tensor:
        """See `Initial`."""
        batch, height, width, _ = latents_BhwD.shape
        rates = 10_000 ** (-torch.arange(self.width // 4, device=latents_BhwD.device) * (4 / self.width))

        def waves(length: int) -> Tensor:
            angles = torch.arange(length, device=latents_BhwD.device)[:, None] * rates
            return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)

        rows_hD, columns_wD = waves(height), waves(width)
        both_hwD = torch.cat([rows_hD[:, None].expand(-1, width, -1), columns_wD[None].expand(height, -1, -1)], -1)
        return both_hwD.to(context.dtype).expand(batch, -1, -1, -1)


class LearnedConstant(nn.Module):
    """A learned array [size, size, D], alike for all images (StyleGAN's), drawn from N(0, 1).

    Args:
      width: D.
      size: height and width of the latents. The decoder can then make images of one size alone.
    """

    def __init__(self, width: int, size: int):
        super().__init__()
        check_positive(width=width, size=size)
        self.constant_hwD = parameter((size, size, width), Normal(1.0), "height", "width", "features")

    def forward(self, latents_BhwD: Tensor, context: Context) -> Tensor:
        """See `Initial`; ValueError for latents of another size."""
        if latents_BhwD.shape[1:] != self.constant_hwD.shape:
            size, _, width = self.constant_hwD.shape
            raise ValueError(f"latents_BhwD must be [B, {size}, {size}, {width}], as size and width of LearnedConstant "
                             f"say, got {list(latents_BhwD.shape)}")
        return self.constant_hwD.to(context.dtype).expand(len(latents_BhwD), -1, -1, -1)


def check_even(width: int, factor: int) -> None:
    """Raises ValueError unless the width is a multiple of the factor."""
    check_positive(width=width)
    if width % factor:
        raise ValueError(f"width must be a multiple of {factor}, sines and cosines side by side; got {width}")
