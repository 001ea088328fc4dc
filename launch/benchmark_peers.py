"""What the benchmark compares with: plain, well-written eager PyTorch of the same sizes, and other people's programs.

    B batch, T tokens, S tokens of an image, D width, N heads, H head dimension, V vocabulary
"""
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

TRANSFORMERS = "transformers (vqim[bench]) is not installed"


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
        caches = [torch.zeros(2, batch_size, self.num_heads, num_tokens, head_size) for _ in self.blocks]
        tokens_B1 = torch.full((batch_size, 1), self.table.num_embeddings - 1)
        drawn = []
        for place in range(num_tokens):
            x_B1D = self.table(tokens_B1) + self.positions.weight[place]
            for block, cache in zip(self.blocks, caches, strict=True):
                x_B1D = block(x_B1D, True, cache, place)
            tokens_B1 = self.head(self.norm(x_B1D))[:, 0].softmax(-1).multinomial(1)
            drawn.append(tokens_B1)
        return torch.cat(drawn, 1)

    @torch.no_grad()
    def fill(self, batch_size: int, num_steps: int) -> Tensor:
        """Draws all tokens [B, S] in a few steps by confidence, as MaskGIT's published program does."""
        num_tokens, mask = self.positions.num_embeddings, self.table.num_embeddings - 1
        tokens_BS = torch.full((batch_size, num_tokens), mask)
        for step in range(num_steps):
            p_BSV = self(tokens_BS).softmax(-1)
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
        latents = self.latents(images_BCHW)
        tokens = (latents @ F.normalize(self.codes.weight, dim=-1).T).argmax(-1)
        codes = F.normalize(self.codes(tokens), dim=-1)
        quantizing = F.mse_loss(codes, latents.detach()) + 0.25 * F.mse_loss(latents, codes.detach())
        return F.mse_loss(self._draw(latents + (codes - latents).detach()), images_BCHW) + quantizing

    def _draw(self, codes_BSZ: Tensor) -> Tensor:
        pixels = self.pixels(self._tower(1, self.widen(codes_BSZ)))
        return rearrange(pixels, "b (h w) (p q c) -> b c (h p) (w q)", h=self.side, p=self.patch, q=self.patch)

    def _tower(self, which: int, x_BSD: Tensor) -> Tensor:
        x_BSD = x_BSD + self.positions[which]
        for block in self.towers[which]:
            x_BSD = block(x_BSD, False)
        out: Tensor = self.heads[which](self.norms[which](x_BSD))
        return out
