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
from vqim.contracts.evaluation import Lookup
from vqim.contracts.grid import Level, TokenGrid, join
from vqim.nn.module import arrays_spec


@dataclasses.dataclass(frozen=True)
class Codes:
    """The input of a decoder.

    Attributes:
      vectors_BhwZ: the codes' vectors as they were looked up; vectors of several channels or levels are concatenated,
        those of residual codes are added.
      latents_BhwD: the same vectors, projected to the decoder's width.
    """

    vectors_BhwZ: Tensor
    latents_BhwD: Tensor


@dataclasses.dataclass(frozen=True)
class Quantized:
    """The output of a quantizer.

    Attributes:
      codes: the decoder's input; gradients pass straight through to the latents.
      indices: int64 codes [B, h, w, K] for each level.
      losses: terms of the training loss by name, already weighted as in their equation.
      sums: float32 arrays that add up over micro-batches, for the quantizer's own `advance`.
      lookups: for each level what was looked up, for the diagnosis of a codebook; empty without a lookup.
    """

    codes: Codes
    indices: tuple[Tensor, ...]
    losses: dict[str, Tensor]
    sums: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    lookups: tuple[Lookup, ...] = ()


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """The output of a decoder: an image, and a distribution where the decoder gives one.

    Attributes:
      mean_BCHW: float32 image with values about [0, 1]; not clamped, so that gradients survive.
      location_BCHW: location of a Laplace distribution of logits (`losses.logit_laplace`); None without one.
      log_scale_BCHW: log scale of that distribution.
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

    A quantizer with numbers that change from step to step also implements `vqim.contracts.context.Scheduled`, and one
    with statistics `vqim.contracts.learning.Advancing`.

    Attributes:
      width_in: the width of the encoder's latents.
      width_out: the width of the decoder's latents.
      widening: name prefixes of the arrays that do not influence tokens, since they only widen codes for the decoder.
        Leave it empty if in doubt.
    """

    width_in: int
    width_out: int
    widening: tuple[str, ...]

    def levels(self, height: int, width: int) -> tuple[Level, ...]:
        """The layout of its codes for latents of this size; ValueError where the size does not fit."""
        ...

    def __call__(self, latents_BhwD: Tensor, context: Context) -> Quantized: ...

    def lookup(self, indices: tuple[Tensor, ...], context: Context) -> Codes:
        """The vectors of codes [B, h, w, K] for each level, as in `Quantized.codes`."""
        ...


class Decoder(Protocol):
    """Codes, with latents of `width`, to images."""

    width: int

    def __call__(self, codes: Codes, context: Context) -> Reconstruction: ...

    def image_part(self, name: str, array: Tensor) -> Tensor:
        """The part of a parameter or gradient on which the image depends: the last layer without log scales."""
        ...


class ImageTokenizer(nn.Module):
    """Encoder, quantizer and decoder: ViT-VQGAN's Figure 1 (left), or any other family.

    Args:
      encoder: the encoder.
      quantizer: the quantizer; its widths have to match those of the encoder and the decoder.
      decoder: the decoder.
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
        """Float images in [0, 1] to codes."""
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
        """Names of the arrays that determine tokens: without the decoder, and without what widens codes for it."""
        others = ("decoder/", *(f"quantizer/{name}" for name in self.quantizer.widening))
        return sorted(name for name in arrays_spec(self) if not name.startswith(others))


def images_to_float(images_BHWC: Tensor) -> Tensor:
    """uint8 [B, H, W, C], as in batches, to float32 [B, C, H, W] in [0, 1]."""
    return rearrange(images_BHWC, "b h w c -> b c h w").float() / 255.0


def float_to_images(images_BCHW: Tensor) -> Tensor:
    """Float images in [0, 1] rounded to 8 bits: uint8 [B, H, W, C]."""
    return rearrange((images_BCHW * 255).round().to(torch.uint8), "b c h w -> b h w c")
