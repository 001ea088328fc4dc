"""An image tokenizer: an encoder, a quantizer and a decoder, and nothing else.

    B batch, C image channels, H W image size, h w latent size, D latent width, K codes a position,
    N positions of all levels
"""
import dataclasses
from typing import Protocol

from einops import rearrange
from torch import Tensor, nn

from vqim.nn.context import Context, scheduled_scalars
from vqim.tokenizer.grid import Level, TokenGrid, join


@dataclasses.dataclass(frozen=True)
class Quantized:
    """What a quantizer makes of latents.

    Attributes:
      latents_BhwD: the codes' vectors, as wide as the decoder wants them; gradients pass straight through.
      indices: int64 codes [B, h, w, K] of each level.
      losses: terms of the training loss by name, each already weighted as its equation says.
    """

    latents_BhwD: Tensor
    indices: tuple[Tensor, ...]
    losses: dict[str, Tensor]


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

    One with numbers that change from step to step is `vqim.nn.context.Scheduled` too.
    """

    width_in: int
    width_out: int

    def levels(self, height: int, width: int) -> tuple[Level, ...]:
        """What its codes are for latents of this size; ValueError where the size does not fit."""
        ...

    def __call__(self, latents_BhwD: Tensor, context: Context) -> Quantized: ...

    def lookup(self, indices: tuple[Tensor, ...], context: Context) -> Tensor:
        """The vectors of given codes [B, h, w, K] of each level, as `Quantized.latents_BhwD` has them."""
        ...


class Decoder(Protocol):
    """Code vectors [B, h, w, width] to images."""

    width: int

    def __call__(self, latents_BhwD: Tensor, context: Context) -> Reconstruction: ...


class ImageTokenizer(nn.Module):
    """encoder, quantizer, decoder: ViT-VQGAN's Figure 1 (left), or any other family's.

    Args:
      encoder, quantizer, decoder: the three parts; their widths have to meet.
      image_size: height and width of the images, in pixels.
    """

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

    def decode(self, latents_BhwD: Tensor, context: Context) -> Reconstruction:
        """Vectors of codes to images."""
        return self.decoder(latents_BhwD, context.fold("decoder"))

    def forward(self, images_BCHW: Tensor, context: Context) -> tuple[Quantized, Reconstruction]:
        """Encodes, quantises and decodes."""
        quantized = self.encode(images_BCHW, context)
        return quantized, self.decode(quantized.latents_BhwD, context)

    def tokens(self, images_BCHW: Tensor, context: Context) -> Tensor:
        """Images to int64 token sequences [B, N, K]: level by level, each in raster order."""
        return join(self.encode(images_BCHW, context).indices)

    def images(self, tokens_BNK: Tensor, context: Context) -> Tensor:
        """Token sequences to images [B, C, H, W], float32, clamped to [0, 1]."""
        latents_BhwD = self.quantizer.lookup(self.grid.split(tokens_BNK), context.fold("quantizer"))
        return self.decode(latents_BhwD, context).mean_BCHW.clamp(0.0, 1.0)


def images_to_float(images_BHWC: Tensor) -> Tensor:
    """uint8 [B, H, W, C], as batches travel, to float32 [B, C, H, W] in [0, 1]."""
    return rearrange(images_BHWC, "b h w c -> b c h w").float() / 255.0
