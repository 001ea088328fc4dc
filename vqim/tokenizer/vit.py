"""ViT-VQGAN's encoder and decoder. ViT-VQGAN section 3.1, Table 2.

    B batch, C image channels, H W image size, h w grid of patches, P patch size, N = h * w, D width
"""
import torch
from einops import rearrange
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.nn.layers import Dense, LayerNorm, check_positive
from vqim.nn.module import parameter
from vqim.nn.transformer import Stack, TransformerBlock
from vqim.state.init import Normal
from vqim.tokenizer.losses import floor_log_scale, unmap_pixels
from vqim.tokenizer.model import Codes, Reconstruction


class ViTEncoder(nn.Module):
    """Non-overlapping patches, learned positions, transformer blocks, and a two-layer tanh feed-forward.

    Args:
      image_size: height and width of images, in pixels; fixes the table of positions.
      patch_size: height and width of a patch, in pixels.
      width: the transformer's width, 'Model Dim' in Table 2.
      num_layers: the number of transformer blocks, '#Blocks' in Table 2.
      num_heads: the number of attention heads, '#Heads' in Table 2.
      hidden: the hidden width of the feed-forward, 'Hidden Dim' in Table 2.
      dropout_rate: the dropout rate, 0.0 in the paper.
      num_channels: the number of image channels.
    """

    def __init__(
        self, image_size: int, patch_size: int, width: int, num_layers: int, num_heads: int, hidden: int,
        dropout_rate: float = 0.0, num_channels: int = 3,
    ):
        super().__init__()
        check_positive(image_size=image_size, patch_size=patch_size, num_channels=num_channels)
        self.image_size, self.patch_size, self.width = image_size, patch_size, width
        self.embed = Dense(num_channels * patch_size**2, width)
        self.tower = Tower(self.latent_size(image_size), width, num_layers, num_heads, hidden, dropout_rate)
        self.head = FeedForwardHead(width, hidden, width)

    def latent_size(self, image_size: int) -> tuple[int, int]:
        """(h, w)."""
        if image_size != self.image_size:
            raise ValueError(f"image_size must be the encoder's own, {self.image_size}, got {image_size}")
        if image_size % self.patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size {self.patch_size}, got {image_size}")
        return image_size // self.patch_size, image_size // self.patch_size

    def forward(self, images_BCHW: Tensor, context: Context) -> Tensor:
        """Images in [0, 1] to latents [B, h, w, D]."""
        p = self.patch_size
        patches_BhwP = rearrange(2 * images_BCHW - 1, "b c (h p) (w q) -> b h w (p q c)", p=p, q=p)
        return self.head(self.tower(self.embed(patches_BhwP, context), context), context)


class ViTDecoder(nn.Module):
    """The reverse of `ViTEncoder`: learned positions, transformer blocks, and a tanh feed-forward to patches of pixels.

    The last layer gives location and log scale of a logit-Laplace distribution for every value. The image is the
    sigmoid of the location, mapped back from [eps, 1 - eps] (sections 3.1 and 3.3).

    Args:
      As for `ViTEncoder`.
    """

    def __init__(
        self, image_size: int, patch_size: int, width: int, num_layers: int, num_heads: int, hidden: int,
        dropout_rate: float = 0.0, num_channels: int = 3,
    ):
        super().__init__()
        check_positive(image_size=image_size, patch_size=patch_size, num_channels=num_channels)
        if image_size % patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size {patch_size}, got {image_size}")
        self.patch_size, self.width = patch_size, width
        side = image_size // patch_size
        self.tower = Tower((side, side), width, num_layers, num_heads, hidden, dropout_rate)
        self.head = FeedForwardHead(width, hidden, 2 * num_channels * patch_size**2)

    def forward(self, codes: Codes, context: Context) -> Reconstruction:
        """Codes to images."""
        p = self.patch_size
        patches = self.head(self.tower(codes.latents_BhwD, context), context).float()
        location_BCHW, log_scale_BCHW = rearrange(patches, "b h w (s p q c) -> s b c (h p) (w q)", s=2, p=p, q=p)
        mean_BCHW = unmap_pixels(torch.sigmoid(location_BCHW))
        return Reconstruction(mean_BCHW, location_BCHW, floor_log_scale(log_scale_BCHW))

    def image_part(self, name: str, array: Tensor) -> Tensor:
        """The first half of the last layer's columns, which gives locations; other arrays unchanged."""
        return array.chunk(2, dim=-1)[0] if name.startswith("head/contract/") else array


class Tower(nn.Module):
    """Adds positions, then runs a stack of blocks over the flattened grid and a final layer norm."""

    def __init__(
        self, size: tuple[int, int], width: int, num_layers: int, num_heads: int, hidden: int, dropout_rate: float,
    ):
        super().__init__()
        self.positions_hwD = parameter((*size, width), Normal(0.02), "height", "width", "features")
        block = TransformerBlock(width, num_heads, hidden, causal=False, dropout_rate=dropout_rate)
        self.blocks = Stack(block, num_layers)
        self.norm = LayerNorm(width)

    def forward(self, x_BhwD: Tensor, context: Context) -> Tensor:
        """[B, h, w, D] to [B, h, w, D]."""
        x_BhwD = x_BhwD.to(context.dtype) + self.positions_hwD.to(context.dtype)
        x_BND = self.blocks(rearrange(x_BhwD, "b h w d -> b (h w) d"), context)
        return rearrange(self.norm(x_BND, context), "b (h w) d -> b h w d", h=x_BhwD.shape[1])


class FeedForwardHead(nn.Module):
    """Two layers with a tanh between them, and no activation at the end (section 3.1)."""

    def __init__(self, num_inputs: int, hidden: int, num_outputs: int):
        super().__init__()
        self.expand = Dense(num_inputs, hidden)
        self.contract = Dense(hidden, num_outputs)

    def forward(self, x_BhwD: Tensor, context: Context) -> Tensor:
        """[..., num_inputs] to [..., num_outputs]."""
        return self.contract(torch.tanh(self.expand(x_BhwD, context)), context)
