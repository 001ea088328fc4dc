"""DALL-E's dVAE in torch.nn's modules, named as in OpenAI's files: a peer to compare with, our own code."""
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


class Conv(nn.Module):
    def __init__(self, before, after, size):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(after, before, size, size)), nn.Parameter(torch.randn(after))

    def forward(self, x):
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    def __init__(self, before, after, sizes, num_layers):
        super().__init__()
        quarter = after // 4
        widths = [before, quarter, quarter, quarter, after]
        self.id_path = nn.Identity() if before == after else Conv(before, after, 1)
        layers = OrderedDict()
        for i, size in enumerate(sizes, start=1):
            layers[f"relu_{i}"], layers[f"conv_{i}"] = nn.ReLU(), Conv(widths[i - 1], widths[i], size)
        self.res_path, self.num_layers = nn.Sequential(layers), num_layers

    def forward(self, x):
        return self.id_path(x) + self.res_path(x) / self.num_layers**2


def network(first, before, widths, num_blocks, sizes, resample, last):
    parts = OrderedDict({"input": first})
    for i, width in enumerate(widths, start=1):
        group = OrderedDict()
        for j in range(1, num_blocks + 1):
            group[f"block_{j}"] = Block(width if j > 1 else before, width, sizes, num_blocks * len(widths))
        if i < len(widths):
            group["resample"] = resample
        parts[f"group_{i}"], before = nn.Sequential(group), width
    parts["output"] = nn.Sequential(OrderedDict({"relu": nn.ReLU(), "conv": last}))
    return nn.Sequential(parts)


class Encoder(nn.Module):
    """Images in [0.1, 0.9] to logits [B, V, h, w]."""

    def __init__(self, hidden, num_blocks, vocabulary):
        super().__init__()
        widths = [hidden, 2 * hidden, 4 * hidden, 8 * hidden]
        self.blocks = network(Conv(3, hidden, 7), hidden, widths, num_blocks, (3, 3, 3, 1), nn.MaxPool2d(2),
                              Conv(8 * hidden, vocabulary, 1))

    def forward(self, x):
        return self.blocks(x)


class Decoder(nn.Module):
    """One-hot codes [B, V, h, w] to locations and log scales [B, 6, H, W]."""

    def __init__(self, hidden, num_blocks, vocabulary, width):
        super().__init__()
        widths = [8 * hidden, 4 * hidden, 2 * hidden, hidden]
        self.blocks = network(Conv(vocabulary, width, 1), width, widths, num_blocks, (1, 3, 3, 3),
                              nn.Upsample(scale_factor=2, mode="nearest"), Conv(hidden, 6, 1))

    def forward(self, z):
        return self.blocks(z)
