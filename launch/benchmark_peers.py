"""What the benchmark compares with: plain, well-written eager PyTorch of the same sizes.

    B batch, T tokens, S tokens of an image, D width, N heads, H head dimension, V vocabulary
"""
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms


class PlainBlock(nn.Module):
    """A pre-norm block with one product for queries, keys and values."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor, causal: bool, cache: Tensor | None = None, place: int = 0) -> Tensor:
        """All positions; with a cache [2, B, N, S, H], one position and those before it."""
        q, k, v = rearrange(self.qkv(self.norms[0](x_BTD)), "b t (c n h) -> c b n t h", c=3, n=self.num_heads)
        if cache is not None:
            cache[0, :, :, place], cache[1, :, :, place] = k[:, :, 0], v[:, :, 0]
            k, v = cache[:, :, :, :place + 1]
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal and cache is None)
        x_BTD = x_BTD + self.out(rearrange(attended, "b n t h -> b t (n h)"))
        hidden: Tensor = self.contract(F.gelu(self.expand(self.norms[1](x_BTD))))
        return x_BTD + hidden


class PlainPrior(nn.Module):
    """A transformer over tokens; the last row of the table is the class token, or the mask."""

    def __init__(self, width: int, num_layers: int, num_heads: int, vocabulary: int, num_tokens: int, causal: bool):
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.table = nn.Embedding(vocabulary + 1, width)
        self.positions = nn.Embedding(num_tokens, width)
        self.blocks = nn.ModuleList([PlainBlock(width, num_heads) for _ in range(num_layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        x_BTD = self.table(tokens_BT) + self.positions.weight[:tokens_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD, self.causal)
        logits: Tensor = self.head(self.norm(x_BTD))
        return logits

    def loss(self, tokens_BS: Tensor) -> Tensor:
        """Cross-entropy of each token given those before it."""
        inputs_BS = F.pad(tokens_BS[:, :-1], (1, 0), value=self.table.num_embeddings - 1)
        return F.cross_entropy(self(inputs_BS).flatten(0, 1), tokens_BS.flatten())

    @torch.no_grad()
    def sample(self, batch_size: int) -> Tensor:
        """Draws tokens [B, S] against a cache that is allocated once; only what is filled is attended to."""
        num_tokens, head_size = self.positions.num_embeddings, self.positions.embedding_dim // self.num_heads
        caches = [torch.zeros(2, batch_size, self.num_heads, num_tokens, head_size, dtype=self.head.weight.dtype)
                  for _ in self.blocks]
        tokens_B1 = torch.full((batch_size, 1), self.table.num_embeddings - 1)
        drawn = []
        for place in range(num_tokens):
            x_B1D = self.table(tokens_B1) + self.positions.weight[place]
            for block, cache in zip(self.blocks, caches, strict=True):
                x_B1D = block(x_B1D, True, cache, place)
            tokens_B1 = self.head(self.norm(x_B1D))[:, 0].float().softmax(-1).multinomial(1)
            drawn.append(tokens_B1)
        return torch.cat(drawn, 1)

    @torch.no_grad()
    def fill(self, batch_size: int, num_steps: int) -> Tensor:
        """Draws all tokens [B, S] in a few steps by confidence, as MaskGIT's published program does."""
        num_tokens, mask = self.positions.num_embeddings, self.table.num_embeddings - 1
        tokens_BS = torch.full((batch_size, num_tokens), mask)
        for step in range(num_steps):
            p_BSV = self(tokens_BS).float().softmax(-1)
            drawn_BS = p_BSV.flatten(0, 1).multinomial(1).reshape(batch_size, num_tokens)
            confidence_BS = p_BSV.gather(-1, drawn_BS[..., None])[..., 0].log()
            uniform_BS = torch.rand(confidence_BS.shape)
            confidence_BS -= 4.5 * (1 - (step + 1) / num_steps) * (-uniform_BS.log()).log()
            is_masked_BS = tokens_BS == mask
            left = int(num_tokens * torch.cos(torch.tensor((step + 1) / num_steps * torch.pi / 2)))
            tokens_BS = torch.where(is_masked_BS, drawn_BS, tokens_BS)
            if left > 0 and step + 1 < num_steps:
                confidence_BS = confidence_BS.masked_fill(~is_masked_BS, torch.inf)
                tokens_BS.scatter_(1, confidence_BS.topk(left, largest=False).indices, mask)
        return tokens_BS


def quantize(latents: Tensor, table: nn.Embedding) -> tuple[Tensor, Tensor]:
    """The nearest of unit-length codes [..., 32], with gradients for the latents, and the two terms of the codebook."""
    tokens = (latents @ F.normalize(table.weight, dim=-1).T).argmax(-1)
    codes = F.normalize(table(tokens), dim=-1)
    quantizing = F.mse_loss(codes, latents.detach()) + 0.25 * F.mse_loss(latents, codes.detach())
    return latents + (codes - latents).detach(), quantizing


class PlainTokenizer(nn.Module):
    """A ViT-VQGAN: patches, blocks, the nearest of unit-length codes, blocks, patches."""

    def __init__(self, size: int, patch: int, width: int, num_layers: int, num_heads: int, vocabulary: int):
        super().__init__()
        self.patch, self.side = patch, size // patch
        pixels, num_tokens = 3 * patch * patch, self.side**2
        self.embed, self.pixels = nn.Linear(pixels, width), nn.Linear(width, pixels)
        self.towers = [nn.ModuleList([PlainBlock(width, num_heads) for _ in range(num_layers)]) for _ in range(2)]
        self.encoder, self.decoder = self.towers
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.heads = nn.ModuleList([nn.Sequential(nn.Linear(width, 4 * width), nn.Tanh(), nn.Linear(4 * width, width))
                                    for _ in range(2)])
        self.positions = nn.ParameterList([torch.zeros(num_tokens, width) for _ in range(2)])
        self.narrow, self.widen = nn.Linear(width, 32), nn.Linear(32, width)
        self.codes = nn.Embedding(vocabulary, 32)

    def latents(self, images_BCHW: Tensor) -> Tensor:
        """Unit-length latents [B, S, 32]."""
        patches = rearrange(images_BCHW, "b c (h p) (w q) -> b (h w) (p q c)", p=self.patch, q=self.patch)
        return F.normalize(self.narrow(self._tower(0, self.embed(patches))), dim=-1)

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Tokens [B, S]."""
        return (self.latents(images_BCHW) @ F.normalize(self.codes.weight, dim=-1).T).argmax(-1)

    def decode(self, tokens_BS: Tensor) -> Tensor:
        """Images [B, C, H, W]."""
        return self._draw(F.normalize(self.codes(tokens_BS), dim=-1))

    def loss(self, images_BCHW: Tensor) -> Tensor:
        """Squared error, and the two terms of the codebook."""
        codes, quantizing = quantize(self.latents(images_BCHW), self.codes)
        return F.mse_loss(self._draw(codes), images_BCHW) + quantizing

    def _draw(self, codes_BSZ: Tensor) -> Tensor:
        pixels = self.pixels(self._tower(1, self.widen(codes_BSZ)))
        return rearrange(pixels, "b (h w) (p q c) -> b c (h p) (w q)", h=self.side, p=self.patch, q=self.patch)

    def _tower(self, which: int, x_BSD: Tensor) -> Tensor:
        x_BSD = x_BSD + self.positions[which]
        for block in self.towers[which]:
            x_BSD = block(x_BSD, False)
        out: Tensor = self.heads[which](self.norms[which](x_BSD))
        return out


class PlainResidual(nn.Module):
    """Norm, swish, convolution, twice; beside it the input, by a 1x1 convolution where channels change."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(32, channels, 1e-6) for channels in (before, after)])
        self.convs = nn.ModuleList([nn.Conv2d(channels, after, 3, padding=1) for channels in (before, after)])
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, before, H, W] to [B, after, H, W]."""
        y_BCHW = x_BCHW
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y_BCHW = conv(F.silu(norm(y_BCHW)))
        summed: Tensor = self.skip(x_BCHW) + y_BCHW
        return summed


class PlainAttention(nn.Module):
    """Attention with one head over all pixels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, 1e-6)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        q, k, v = rearrange(self.qkv(self.norm(x_BCHW)), "b (n c) h w -> n b (h w) c", n=3)
        attended = rearrange(F.scaled_dot_product_attention(q, k, v), "b (h w) c -> b c h w", h=x_BCHW.shape[2])
        summed: Tensor = x_BCHW + self.out(attended)
        return summed


class PlainCNN(nn.Module):
    """VQGAN's encoder and decoder with unit-length codes of 32 dimensions between them."""

    def __init__(self, channels: int, multipliers: tuple[int, ...], width: int, vocabulary: int):
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers]
        last = widths[-1]
        middle = [PlainResidual(last, last), PlainAttention(last), PlainResidual(last, last)]
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
        for i, (before, after) in enumerate(zip([channels, *widths], widths, strict=False)):
            is_last = i == len(widths) - 1
            for inputs in (before, after):
                layers += [PlainResidual(inputs, after), *([PlainAttention(after)] if is_last else [])]
            layers += [] if is_last else [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(after, after, 3, stride=2)]
        self.encoder = nn.Sequential(*layers, *middle, *_out(last, width))
        layers = [nn.Conv2d(width, last, 3, padding=1), PlainResidual(last, last), PlainAttention(last),
                  PlainResidual(last, last)]
        reverse = widths[::-1]
        for i, (before, after) in enumerate(zip([last, *reverse], reverse, strict=False)):
            for inputs in (before, after, after):
                layers += [PlainResidual(inputs, after), *([PlainAttention(after)] if i == 0 else [])]
            layers += [] if i == len(reverse) - 1 else [
                nn.Upsample(scale_factor=2), nn.Conv2d(after, after, 3, padding=1)]
        self.decoder = nn.Sequential(*layers, *_out(reverse[-1], 3))
        self.narrow, self.widen = nn.Linear(width, 32), nn.Linear(32, width)
        self.codes = nn.Embedding(vocabulary, 32)

    def loss(self, images_BCHW: Tensor) -> Tensor:
        """Squared error, and the two terms of the codebook."""
        latents = self.narrow(rearrange(self.encoder(2 * images_BCHW - 1), "b d h w -> b h w d"))
        codes, quantizing = quantize(F.normalize(latents, dim=-1), self.codes)
        drawn_BCHW = self.decoder(rearrange(self.widen(codes), "b h w d -> b d h w"))
        return F.mse_loss((drawn_BCHW + 1) / 2, images_BCHW) + quantizing


def _out(before: int, after: int) -> list[nn.Module]:
    return [nn.GroupNorm(32, before, 1e-6), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1)]


class PlainImages(torch.utils.data.Dataset[Tensor]):
    """Image files, decoded by Pillow, a random part of each scaled and flipped, as torchvision does it."""

    def __init__(self, folder: Path, image_size: int, num_images: int):
        self.files = sorted(folder.rglob("*.jpg"))
        self.num_images = num_images
        self.transform = transforms.Compose([
            transforms.RandomResizedCrop(image_size, (0.8, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(), transforms.PILToTensor()])

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, number: int) -> Tensor:
        with Image.open(self.files[number % len(self.files)]) as image:
            found: Tensor = self.transform(image.convert("RGB"))
        return found
