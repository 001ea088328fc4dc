"""StyleGAN2's discriminator in its direct form: zeros, blur, convolution with stride 2, one after another.

    B batch, C channels, H W image size
"""
import torch
import torch.nn.functional as F

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8


def convolve(params, name, x, **settings):
    """A convolution without a bias."""
    return F.conv2d(x, params[name], **settings)


def activate(params, name, x):
    """Bias, leaky rectifier, gain."""
    x = x + params[name].reshape(1, -1, *[1] * (x.ndim - 2))
    return torch.where(x > 0, x, 0.2 * x) * 2**0.5


def blur(x, padding):
    """Every channel by itself, with the outer product of the taps."""
    kernel = (TAPS[:, None] * TAPS).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, (padding,) * 4), kernel, groups=x.shape[1])


def dense(params, name, x):
    """A matrix product without a bias."""
    return x @ params[name]


def logits(params, images, group_size=4):
    """logits_B of images [B, C, H, W] in [0, 1]."""
    x = activate(params, "from_rgb/bias_O", convolve(params, "from_rgb/kernel_OIHW", images * 2 - 1))
    block = 0
    while x.shape[-1] > 4:
        prefix = f"blocks/{block}/"
        y = activate(params, prefix + "bias_1_O", convolve(params, prefix + "kernel_1_OIHW", x, padding=1))
        y = convolve(params, prefix + "kernel_2_OIHW", blur(y, 2), stride=2)
        skip = convolve(params, prefix + "skip_kernel_OIHW", blur(x, 1)[:, :, ::2, ::2])
        x = (activate(params, prefix + "bias_2_O", y) + skip) / 2**0.5
        block += 1
    deviations = []
    size = min(group_size, len(x))
    for first in range(0, len(x), size):
        group = x[first:first + size]
        variance = ((group - group.mean(0)) ** 2).mean(0)
        deviations += [(variance + 1e-8).sqrt().mean().expand(1, 4, 4)] * size
    x = torch.cat([x, torch.stack(deviations)], 1)
    x = activate(params, "bias_O", convolve(params, "kernel_OIHW", x, padding=1))
    x = activate(params, "hidden_bias_O", dense(params, "hidden_kernel_IO", x.flatten(1)))
    return dense(params, "logit_kernel_IO", x)[:, 0] + params["logit_bias"]
