"""A discriminator that is small, smooth and quick, for tests of what trains one.

    B batch, H W image size, h w patches, F features
"""
import torch
import torch.nn.functional as F
from torch import nn

from vqim.nn.module import parameter
from vqim.state.init import Constant, Normal


class SmallDiscriminator(nn.Module):
    """A strided convolution, tanh, and one logit for each patch, or their mean for each image."""

    def __init__(self, image_size=16, patch_size=4, width=6, patches=False):
        super().__init__()
        self.image_size, self.patch_size, self.patches = image_size, patch_size, patches
        self.kernel_OIHW = parameter((width, 3, patch_size, patch_size), Normal(0.3), "out", "in", "kh", "kw")
        self.bias_O = parameter((width,), Constant(0.1), "features")
        self.head_F = parameter((width,), Normal(0.5), "features")

    def check_batch(self, batch_size):
        """Any will do."""

    def forward(self, images_BCHW, context):
        x_BCHW = (2 * images_BCHW - 1).to(context.dtype)
        features_BFhw = F.conv2d(
            x_BCHW, self.kernel_OIHW.to(context.dtype), self.bias_O.to(context.dtype), stride=self.patch_size)
        # Not by einsum: on XLA it has no second derivative (torch_xla 2.9), and R1's gradient would lack a part.
        logits_Bhw = (torch.tanh(features_BFhw.float()) * self.head_F[:, None, None]).sum(1)
        return logits_Bhw if self.patches else logits_Bhw.mean((1, 2))
