"""Other people's packages on the benchmark's cases; those that are missing, or cannot run a case, are shown so.

    B images in a batch, S tokens of an image, D width, V vocabulary, Z code dimension
"""
import importlib.util
import logging
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

NEEDED = {
    "transformers GPT-2": ("transformers",),
    "x-transformers": ("x_transformers",),
    "timm, vector-quantize-pytorch": ("timm", "vector_quantize_pytorch"),
    "diffusers VQModel": ("diffusers",),
}
"""The packages that a peer is made of; vqim[bench] has all of them."""

CODE_DIM = 32


def why_missing(peer: str) -> str | None:
    """Which packages are not installed; None if all are."""
    missing = [name for name in NEEDED[peer] if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} (vqim[bench]) not installed" if missing else None


def gpt2(width: int, num_layers: int, num_heads: int, vocabulary: int, num_tokens: int) -> Any:
    """transformers' GPT-2; its token V begins a sequence."""
    import transformers
    transformers.logging.set_verbosity_error()  # it warns of padding, of which there is none
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=vocabulary + 1, n_positions=num_tokens + 1, n_embd=width, n_layer=num_layers,
        n_head=num_heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=vocabulary,
        eos_token_id=None, pad_token_id=vocabulary))


def gpt2_draw(model: Any, batch_size: int, num_tokens: int, vocabulary: int, cache: str) -> Tensor:
    """All tokens, and the one before them, by `generate`; its cache is 'static' or 'dynamic'."""
    begin_B1 = torch.full((batch_size, 1), vocabulary)
    tokens: Tensor = model.generate(
        begin_B1, attention_mask=torch.ones_like(begin_B1), do_sample=True, top_k=0, top_p=1.0,
        min_new_tokens=num_tokens, max_new_tokens=num_tokens,
        cache_implementation=cache if cache == "static" else None)
    return tokens


def x_decoder(width: int, num_layers: int, num_heads: int, vocabulary: int, num_tokens: int) -> Any:
    """x-transformers' decoder with its fused attention; its token V begins a sequence."""
    import x_transformers
    logging.getLogger("x_transformers").setLevel(logging.ERROR)
    return x_transformers.AutoregressiveWrapper(x_transformers.TransformerWrapper(
        num_tokens=vocabulary + 1, max_seq_len=num_tokens + 1, attn_layers=x_transformers.Decoder(
            dim=width, depth=num_layers, heads=num_heads, attn_dim_head=width // num_heads, attn_flash=True)))


def x_loss(model: Any, tokens_BS: Tensor, vocabulary: int) -> Tensor:
    """Cross-entropy of each token given those before it."""
    loss: Tensor = model(F.pad(tokens_BS, (1, 0), value=vocabulary))
    return loss


def x_draw(model: Any, batch_size: int, num_tokens: int, vocabulary: int) -> Tensor:
    """All tokens by `generate`, with its cache."""
    tokens: Tensor = model.generate(
        torch.full((batch_size, 1), vocabulary), num_tokens, temperature=1.0,
        filter_logits_fn=lambda logits: logits, cache_kv=True)
    return tokens


class TimmTokenizer(nn.Module):
    """A ViT-VQGAN of timm's blocks, with the quantizer of vector-quantize-pytorch (cosine similarity, EMA)."""

    def __init__(self, size: int, patch: int, width: int, num_layers: int, num_heads: int, vocabulary: int):
        super().__init__()
        from timm.models.vision_transformer import Block
        from vector_quantize_pytorch import VectorQuantize
        self.patch, self.side, pixels = patch, size // patch, 3 * patch * patch
        self.embed, self.pixels = nn.Linear(pixels, width), nn.Linear(width, pixels)
        self.positions = nn.ParameterList([torch.zeros(self.side**2, width) for _ in range(2)])
        self.towers = nn.ModuleList([
            nn.Sequential(*[Block(width, num_heads, 4.0, qkv_bias=True) for _ in range(num_layers)],
                          nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Tanh(), nn.Linear(4 * width, width))
            for _ in range(2)])
        self.quantizer = VectorQuantize(width, vocabulary, codebook_dim=CODE_DIM, use_cosine_sim=True)

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Tokens [B, S]."""
        tokens_BS: Tensor = self._quantize(images_BCHW)[1]
        return tokens_BS

    def decode(self, tokens_BS: Tensor) -> Tensor:
        """Images [B, C, H, W]."""
        return self._draw(self.quantizer.get_output_from_indices(tokens_BS))

    def loss(self, images_BCHW: Tensor) -> Tensor:
        """Squared error, and the quantizer's loss."""
        codes_BSD, _, quantizing = self._quantize(images_BCHW)
        return F.mse_loss(self._draw(codes_BSD), images_BCHW) + quantizing

    def _quantize(self, images_BCHW: Tensor) -> Any:
        patches = rearrange(images_BCHW, "b c (h p) (w q) -> b (h w) (p q c)", p=self.patch, q=self.patch)
        return self.quantizer(self.towers[0](self.embed(patches) + self.positions[0]))

    def _draw(self, codes_BSD: Tensor) -> Tensor:
        pixels = self.pixels(self.towers[1](codes_BSD + self.positions[1]))
        return rearrange(pixels, "b (h w) (p q c) -> b c (h p) (w q)", h=self.side, p=self.patch, q=self.patch)


def vq_model(channels: int, multipliers: tuple[int, ...], width: int, vocabulary: int) -> Any:
    """diffusers' VQModel of the same channels; of attention it has only that in the middle."""
    import diffusers
    return diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * len(multipliers),
        up_block_types=("UpDecoderBlock2D",) * len(multipliers),
        block_out_channels=tuple(channels * multiplier for multiplier in multipliers), layers_per_block=2,
        latent_channels=width, num_vq_embeddings=vocabulary, vq_embed_dim=CODE_DIM)


def vq_loss(model: Any, images_BCHW: Tensor) -> Tensor:
    """Squared error, and the quantizer's loss."""
    found = model(2 * images_BCHW - 1)
    total: Tensor = F.mse_loss((found.sample + 1) / 2, images_BCHW) + found.commit_loss
    return total
