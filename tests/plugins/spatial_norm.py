"""MoVQ's spatially conditional normalisation (Zheng et al., 2022, equation 4): a norm that sees the codes everywhere.

    B batch, C channels, H W image size, Z width of the codes' vectors, h w their size
"""
import gin
from einops import repeat
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.nn.convolution import Conv2d, GroupNorm


class SpatialNorm(nn.Module):
    """norm(x) * scale(codes) + shift(codes), the codes at x's size, by 1x1 convolutions."""

    def __init__(self, num_features: int, condition_width: int):
        super().__init__()
        self.norm = GroupNorm(num_features)
        self.scale, self.shift = (Conv2d(condition_width, num_features, kernel_size=1) for _ in range(2))

    def forward(self, x_BCHW: Tensor, context: Context, condition_BZhw: Tensor | None = None) -> Tensor:
        assert condition_BZhw is not None
        times = x_BCHW.shape[2] // condition_BZhw.shape[2]
        codes_BZHW = repeat(condition_BZhw, "b z h w -> b z (h p) (w q)", p=times, q=times)
        return self.norm(x_BCHW, context) * (1 + self.scale(codes_BZHW, context)) + self.shift(codes_BZHW, context)


gin.register(SpatialNorm, module="plugin")
