"""An image tokenizer: an encoder, a quantizer and a decoder, and nothing else.

    B batch, C image channels, H W image size, h w latent size, D latent width, K codes a position,
    N positions of all levels
"""
import dataclasses
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from vqim.contracts.context import Context, scheduled_scalars
from vqim.contracts.grid import Level, TokenGrid, join
from vqim.nn.module import arrays_spec


@dataclasses.dataclass(frozen=True)
class Codes:
    """What a decoder is given.

    Attributes:
      vectors_BhwZ: the codes' vectors as they were looked up; of several channels or levels side by side.
      latents_BhwD: the same as wide as the decoder wants them.
    """

    vectors_BhwZ: Tensor
    latents_BhwD: Tensor


@dataclasses.dataclass(frozen=True)
class Quantized:
    """What a quantizer makes of latents.

    Attributes:
      codes: gradients pass straight through them to the latents.
      indices: int64 codes [B, h, w, K] of each level.
      losses: terms of the training loss by name, each already weighted as its equation says.
      sums: float32 arrays that add up over micro-batches, for the quantizer's own `advance`.
    """

    codes: Codes
    indices: tuple[Tensor, ...]
    losses: dict[str, Tensor]
    sums: dict[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A decoder's image, as a distribution where it gives one.

    Attributes:
      mean_BCHW: float32 in the units of images, about [0, 1]; not clamped, so that gradients survive.
      location_BCHW, log_scale_BCHW: of a Laplace distribution of logits (`losses.logit_laplace`); None without one.
    """

    mean_BCHW: Tensor
    location_BCHW: Tensor | None = None
    log_scale_BCHW: Tensor | None = None


class Encoder(Protocol):
    """Images in [0, 1] to latents [B, h, w, width]."""

    width: int

    def latent_size(self, image_size: int) -> tuple[int, int]:
        """(h, w) for square images; ValueError where the size does not fit the encoder."""
        ...

    def __call__(self, images_BCHW: Tensor, context: Context) -> Tensor: ...


class Quantizer(Protocol):
    """Latents [B, h, w, width_in] to codes and their vectors [B, h, w, width_out].

    One with numbers that change from step to step is `vqim.contracts.context.Scheduled` too, one with statistics
    `vqim.contracts.learning.Advancing`.

    Attributes:
      width_in, width_out: of the encoder's latents and of the decoder's.
      widening: what the names of those arrays begin with that decide nothing about tokens: they only widen codes for
        the decoder. Empty if in doubt.
    """

    width_in: int
    width_out: int
    widening: tuple[str, ...]

    def levels(self, height: int, width: int) -> tuple[Level, ...]:
        """What its codes are for latents of this size; ValueError where the size does not fit."""
        ...

    def __call__(self, latents_BhwD: Tensor, context: Context) -> Quantized: ...

    def lookup(self, indices: tuple[Tensor, ...], context: Context) -> Codes:
        """The vectors of given codes [B, h, w, K] of each level, as `Quantized.codes` has them."""
        ...


class Decoder(Protocol):
    """Codes, with latents of `width`, to images."""

    width: int

    def __call__(self, codes: Codes, context: Context) -> Reconstruction: ...

    def image_part(self, name: str, array: Tensor) -> Tensor:
        """Of a parameter's array, or its gradient, what the image depends on: the last layer without log scales."""
        ...


class ImageTokenizer(nn.Module):
    """encoder, quantizer, decoder: ViT-VQGAN's Figure 1 (left), or any other family's.

    Args:
      encoder, quantizer, decoder: the three parts; their widths have to meet.
      image_size: height and width of the images, in pixels.
    """

    parts = ("encoder", "quantizer", "decoder")

    def __init__(self, encoder: Encoder, quantizer: Quantizer, decoder: Decoder, image_size: int):
        super().__init__()
        if encoder.width != quantizer.width_in:
            raise ValueError(
                f"quantizer.width_in must be the encoder's width {encoder.width}, got {quantizer.width_in}")
        if decoder.width != quantizer.width_out:
            raise ValueError(
                f"quantizer.width_out must be the decoder's width {decoder.width}, got {quantizer.width_out}")
        quantizer.levels(*encoder.latent_size(image_size))
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.image_size = image_size

    @property
    def grid(self) -> TokenGrid:
        """The tokens of one image."""
        return TokenGrid(self.quantizer.levels(*self.encoder.latent_size(self.image_size)))

    def host_scalars(self, step: int) -> dict[str, float]:
        """Numbers of the network that change from step to step, for `Context.scalars`."""
        return scheduled_scalars(step, quantizer=self.quantizer)

    def encode(self, images_BCHW: Tensor, context: Context) -> Quantized:
        """Images, float in [0, 1], to codes."""
        latents_BhwD = self.encoder(images_BCHW, context.fold("encoder"))
        return self.quantizer(latents_BhwD, context.fold("quantizer"))

    def decode(self, codes: Codes, context: Context) -> Reconstruction:
        """Codes to images."""
        return self.decoder(codes, context.fold("decoder"))

    def forward(self, images_BCHW: Tensor, context: Context) -> tuple[Quantized, Reconstruction]:
        """Encodes, quantises and decodes."""
        quantized = self.encode(images_BCHW, context)
        return quantized, self.decode(quantized.codes, context)

    def tokens(self, images_BCHW: Tensor, context: Context) -> Tensor:
        """Images to int64 token sequences [B, N, K]: level by level, each in raster order."""
        return join(self.encode(images_BCHW, context).indices)

    def images(self, tokens_BNK: Tensor, context: Context) -> Tensor:
        """Token sequences to images [B, C, H, W], float32, clamped to [0, 1]."""
        codes = self.quantizer.lookup(self.grid.split(tokens_BNK), context.fold("quantizer"))
        return self.decode(codes, context).mean_BCHW.clamp(0.0, 1.0)

    def deciding_arrays(self) -> list[str]:
        """Names of the arrays that decide tokens: not the decoder's, nor what widens codes for it."""
        others = ("decoder/", *(f"quantizer/{name}" for name in self.quantizer.widening))
        return sorted(name for name in arrays_spec(self) if not name.startswith(others))


def images_to_float(images_BHWC: Tensor) -> Tensor:
    """uint8 [B, H, W, C], as batches travel, to float32 [B, C, H, W] in [0, 1]."""
    return rearrange(images_BHWC, "b h w c -> b c h w").float() / 255.0


def float_to_images(images_BCHW: Tensor) -> Tensor:
    """Float images in [0, 1] rounded to 8 bits: uint8 [B, H, W, C]."""
    return rearrange((images_BCHW * 255).round().to(torch.uint8), "b c h w -> b h w c")
