"""VQGAN in torch.nn's modules, named as in taming-transformers' checkpoints: a peer to compare with, our own code."""
import torch
import torch.nn.functional as F
from torch import nn


def normalise(width):
    return nn.GroupNorm(32, width, eps=1e-6)


class Resnet(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.norm1, self.conv1 = normalise(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = normalise(after), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = normalise(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2) for conv in (self.q, self.k, self.v))
        weights = torch.einsum("bcn,bcm->bnm", q, k).div(q.shape[1] ** 0.5).softmax(-1)
        return x + self.proj_out(torch.einsum("bnm,bcm->bcn", weights, v).view_as(x))


class Resample(nn.Module):
    def __init__(self, width, stride):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, padding=0 if stride == 2 else 1)

    def forward(self, x):
        if self.conv.stride == (2, 2):
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def middle(width):
    return nn.ModuleDict({"block_1": Resnet(width, width), "attn_1": Attention(width), "block_2": Resnet(width, width)})


def run_middle(mid, x):
    return mid["block_2"](mid["attn_1"](mid["block_1"](x)))


def level(before, after, num_blocks, with_attention):
    widths = [before] + [after] * num_blocks
    return nn.ModuleDict({
        "block": nn.ModuleList(Resnet(a, b) for a, b in zip(widths, widths[1:], strict=False)),
        "attn": nn.ModuleList(Attention(after) for _ in range(num_blocks if with_attention else 0))})


def run_level(parts, x):
    for i, block in enumerate(parts["block"]):
        x = block(x)
        if len(parts["attn"]):
            x = parts["attn"][i](x)
    return x


class Encoder(nn.Module):
    def __init__(self, ch, ch_mult, num_res_blocks, z_channels):
        super().__init__()
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down, before = nn.ModuleList(), ch
        for i, mult in enumerate(ch_mult):
            is_last = i == len(ch_mult) - 1
            parts = level(before, ch * mult, num_res_blocks, is_last)
            if not is_last:
                parts["downsample"] = Resample(ch * mult, 2)
            self.down.append(parts)
            before = ch * mult
        self.mid = middle(before)
        self.norm_out, self.conv_out = normalise(before), nn.Conv2d(before, z_channels, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for parts in self.down:
            x = run_level(parts, x)
            if "downsample" in parts:
                x = parts["downsample"](x)
        return self.conv_out(F.silu(self.norm_out(run_middle(self.mid, x))))


class Decoder(nn.Module):
    """`up.0` has the highest resolution and runs last."""

    def __init__(self, ch, ch_mult, num_res_blocks, z_channels):
        super().__init__()
        before = ch * ch_mult[-1]
        self.conv_in, self.mid = nn.Conv2d(z_channels, before, 3, padding=1), middle(before)
        ups = []
        for i in reversed(range(len(ch_mult))):
            parts = level(before, ch * ch_mult[i], num_res_blocks + 1, i == len(ch_mult) - 1)
            if i:
                parts["upsample"] = Resample(ch * ch_mult[i], 1)
            ups.insert(0, parts)
            before = ch * ch_mult[i]
        self.up = nn.ModuleList(ups)
        self.norm_out, self.conv_out = normalise(before), nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, z):
        x = run_middle(self.mid, self.conv_in(z))
        for parts in reversed(self.up):
            x = run_level(parts, x)
            if "upsample" in parts:
                x = parts["upsample"](x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Model(nn.Module):
    """VQModel, or with `gumbel` GumbelVQ, in evaluation; images in [-1, 1]."""

    def __init__(self, ch, ch_mult, num_res_blocks, z_channels, embed_dim, n_embed, gumbel=False):
        super().__init__()
        self.encoder = Encoder(ch, ch_mult, num_res_blocks, z_channels)
        self.decoder = Decoder(ch, ch_mult, num_res_blocks, z_channels)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.quantize = nn.ModuleDict(
            {"proj": nn.Conv2d(z_channels, n_embed, 1), "embed": nn.Embedding(n_embed, embed_dim)} if gumbel
            else {"embedding": nn.Embedding(n_embed, embed_dim)})

    def codes(self, images):
        z = self.quant_conv(self.encoder(images))
        if "proj" in self.quantize:
            return self.quantize["proj"](z).argmax(1)
        distances = (z.permute(0, 2, 3, 1)[..., None, :] - self.quantize["embedding"].weight).square().sum(-1)
        return distances.argmin(-1)

    def reconstruct(self, images):
        table = self.quantize["embed"] if "proj" in self.quantize else self.quantize["embedding"]
        return self.decoder(self.post_quant_conv(table(self.codes(images)).permute(0, 3, 1, 2)))
