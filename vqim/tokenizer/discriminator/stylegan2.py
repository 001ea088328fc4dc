"""StyleGAN2's discriminator: Karras et al. (2020), section 4.1 and configuration F of Table 1.

ViT-VQGAN trains with it (section 3.3). Details that the paper leaves open are as in the authors' program
(NVlabs/stylegan2, training/networks_stylegan2.py, `D_stylegan2`).

One thing differs: the learning rate is not equalised. Equalised weights need a rate some 20 times larger, such as
StyleGAN2's 2e-3. At ViT-VQGAN's 1e-4 (section 5.1) they learn little, and ordinary weights well
(docs/paper_tables.md). The initial network is the same.

The direct form (zeros, blur, convolution of stride 2) leaves most of a TPU idle. This file differs from it:

- No convolution has a stride: they run over 2x2 blocks of pixels (blocks.py).
- In residual blocks with up to _FEW_CHANNELS channels, the blur would be a pass over large arrays, so it is folded into
  the kernels that follow it. With more channels the kernels are the large arrays, and the blur is a separate pass.
- The residual blocks with few channels run over strips of the image's rows. A strip is treated as an image, and has the
  rows around it on which it depends. A TPU v4's compiler wants 16 images a chip. With two images, it would move pixels
  into the batch by itself before every convolution, and back after it (docs/tpu_estimates.md).

The values are the same: tests/tokenizer/discriminator/test_stylegan2.py compares them with the direct form.

    B batch, C channels, H W image size, h w = H/2 W/2; S strips, of n rows where an image has h, N = B S;
    I O input and output channels of a kernel; G images in a group
"""
import functools
import itertools
import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.nn.layers import check_positive
from vqim.nn.module import parameter
from vqim.nn.strips import add_neighbours, cut_strips, join_strips, zero_outside
from vqim.state.init import Constant, Normal
from vqim.tokenizer.discriminator.blocks import (
    from_blocks_to_blocks,
    shift_columns,
    space_to_depth,
    within_blocks,
)

MIN_SIZE = 8
SMALLEST = 4
"""Height and width after the last residual block."""

BLUR = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
"""The normalised binomial filter [1, 3, 3, 1]; its outer product with itself blurs before the size is halved."""

_FEW_CHANNELS = 256  # see the top of the file
_NEIGHBOURS = 3  # rows above and below a strip that a residual block's rows depend on
_STRIP_ROWS = 4  # the minimum: even, and more than the rows from a neighbour
_SLOPE = 0.2
_GAIN = math.sqrt(2)  # after each leaky rectifier, which nearly halves the variance
_EPSILON = 1e-8


class StyleGAN2Discriminator(nn.Module):
    """Maps images to logits of being real.

    Its layers are a 1x1 convolution from RGB; residual blocks that halve the image until it is 4x4; the minibatch's
    standard deviation as one more channel; a 3x3 convolution and two dense layers. At size s there are
    min(max_channels, channel_base / s) channels. `channel_base` has its name from stylegan2-ada-pytorch; the
    `fmap_base` in the authors' first program is half of it.

    For the minibatch standard deviation, consecutive images in the whole batch form a group, on any mesh. They are
    mostly on one device; the authors' program groups images a quarter of the batch apart. A batch with fewer images
    than `group_size` is one group. Real and reconstructed images belong in different calls.

    Args:
      image_size: height and width of images; a power of two, at least 8.
      channel_base: 32768 in configuration F; 16384, half as many channels at high resolution, in configuration E and
        in stylegan2-ada-pytorch's 'paper256'.
      max_channels: 512 in both.
      group_size: the number of images in a group for the minibatch standard deviation; 4 in both.
      num_channels: the number of image channels.
      num_strips: the number of strips into which an image is cut at high resolution. Only the speed depends on it:
        16 divided by the number of images on each chip is good on TPU v4, 1 elsewhere.
    """

    def __init__(
        self, image_size: int, channel_base: int = 32768, max_channels: int = 512, group_size: int = 4,
        num_channels: int = 3, num_strips: int = 1,
    ):
        super().__init__()
        check_positive(image_size=image_size, channel_base=channel_base, max_channels=max_channels,
                       group_size=group_size, num_channels=num_channels, num_strips=num_strips)
        if image_size < MIN_SIZE or image_size & (image_size - 1):
            raise ValueError(f"image_size must be a power of two and at least {MIN_SIZE}, got {image_size}")
        if channel_base < image_size:
            raise ValueError(f"channel_base must be at least image_size {image_size}, so that there is a channel; "
                             f"got {channel_base}")
        if num_strips & (num_strips - 1) or num_strips > image_size // _STRIP_ROWS:
            raise ValueError(f"num_strips must be a power of two and at most image_size / {_STRIP_ROWS} = "
                             f"{image_size // _STRIP_ROWS}, got {num_strips}")
        self.image_size, self.group_size = image_size, group_size
        sizes = [image_size >> halvings for halvings in range(int(math.log2(image_size // SMALLEST)) + 1)]
        channels = [min(max_channels, channel_base // size) for size in sizes]
        # From block to block, channels only grow and strips only get shorter.
        strips = [num_strips if size >= _STRIP_ROWS * num_strips and num_inputs <= _FEW_CHANNELS else None
                  for size, num_inputs in zip(sizes, channels, strict=True)]
        self.from_rgb = FromRGB(num_channels, channels[0], strips[0])
        self.blocks = nn.ModuleList(
            ResidualBlock(num_inputs, num_outputs, block_strips)
            for (num_inputs, num_outputs), block_strips in zip(itertools.pairwise(channels), strips, strict=False))
        last = channels[-1]
        self.kernel_OIHW = _kernel(last, last + 1, 3, 3)
        self.bias_O = parameter((last,), Constant(0.0), "features")
        self.hidden_kernel_IO = _dense_kernel(last * SMALLEST**2, last)
        self.hidden_bias_O = parameter((last,), Constant(0.0), "features")
        self.logit_kernel_IO = _dense_kernel(last, 1)
        self.logit_bias = parameter((), Constant(0.0))

    def check_batch(self, batch_size: int) -> None:
        """Raises ValueError unless the batch can be cut into groups for the minibatch standard deviation."""
        if batch_size > self.group_size and batch_size % self.group_size:
            raise ValueError(f"batch_size, of a micro-batch, must be a multiple of the discriminator's group_size "
                             f"{self.group_size} or smaller than it, got {batch_size}")

    def forward(self, images_BCHW: Tensor, context: Context) -> Tensor:
        """Images in [0, 1] to logits_B, float32 (float64 if the context's dtype is float64).

        Raises:
          ValueError: the images are of another size, or cannot be divided into groups.
        """
        if tuple(images_BCHW.shape[2:]) != (self.image_size, self.image_size):
            raise ValueError(f"images must be {self.image_size}x{self.image_size}, the discriminator's image_size; "
                             f"got {tuple(images_BCHW.shape)}")
        dtype, wide = context.dtype, torch.promote_types(context.dtype, torch.float32)
        x_BCHW = self._features((2 * images_BCHW - 1).to(dtype))
        deviation_B1HW = _group_deviation(x_BCHW.to(wide), self.group_size)
        x_BCHW = torch.cat([x_BCHW, deviation_B1HW.to(dtype)], dim=1)
        x_BCHW = _activate(F.conv2d(x_BCHW, self.kernel_OIHW.to(dtype), padding=1), self.bias_O)
        x_BI = rearrange(x_BCHW, "b c h w -> b (c h w)")
        x_BI = _activate(x_BI @ self.hidden_kernel_IO.to(dtype), self.hidden_bias_O)
        # A sum of products rather than a matrix product: a TPU would round the factors of the latter to bfloat16.
        return (x_BI.to(wide) * self.logit_kernel_IO[:, 0]).sum(1) + self.logit_bias

    def _features(self, x_BCHW: Tensor) -> Tensor:
        """The residual blocks' output for images, [B, C, 4, 4]."""
        x, num_strips = self.from_rgb(x_BCHW), self.from_rgb.num_strips
        for block in self.blocks:
            if num_strips and not block.num_strips:
                x, num_strips = join_strips(x, num_strips), None
            x = block(x)
        return join_strips(x, num_strips) if num_strips else x


class FromRGB(nn.Module):
    """A 1x1 convolution from an image's channels, and a leaky rectifier; in strips where `num_strips` is not None."""

    def __init__(self, num_inputs: int, num_outputs: int, num_strips: int | None):
        super().__init__()
        self.num_strips = num_strips
        self.kernel_OIHW = _kernel(num_outputs, num_inputs, 1, 1)
        self.bias_O = parameter((num_outputs,), Constant(0.0), "features")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, I, H, W] to [B, O, H, W], or in strips to [N, 4 O, n + 3, w + 1] for `ResidualBlock`."""
        kernel_OIHW = self.kernel_OIHW
        if self.num_strips is None:
            return _activate(F.conv2d(x_BCHW, kernel_OIHW.to(x_BCHW.dtype)), self.bias_O)
        # The bias is the weight of a channel of ones, so that it is absent around the image.
        x_BCHW = torch.cat([x_BCHW, torch.ones_like(x_BCHW[:, :1])], dim=1)
        kernel_OIHW = torch.cat([kernel_OIHW, self.bias_O[:, None, None, None]], dim=1)
        x_NChw = shift_columns(cut_strips(x_BCHW, self.num_strips, _NEIGHBOURS))
        return F.leaky_relu(F.conv2d(x_NChw, within_blocks(kernel_OIHW).to(x_NChw.dtype)), _SLOPE) * _GAIN


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the second to half the size, beside a 1x1 convolution to half the size; their sum / sqrt 2.

    Before they halve the size, both branches blur (`BLUR`). In strips where `num_strips` is not None.
    """

    def __init__(self, num_inputs: int, num_outputs: int, num_strips: int | None):
        super().__init__()
        self.num_strips = num_strips
        self.kernel_1_OIHW = _kernel(num_inputs, num_inputs, 3, 3)
        self.bias_1_O = parameter((num_inputs,), Constant(0.0), "features")
        self.kernel_2_OIHW = _kernel(num_outputs, num_inputs, 3, 3)
        self.bias_2_O = parameter((num_outputs,), Constant(0.0), "features")
        self.skip_kernel_OIHW = _kernel(num_outputs, num_inputs, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, H, W] to [B, O, h, w]; strips [N, I, 2n, W], or those of `FromRGB`, to strips [N, O, n, w]."""
        if self.num_strips is None:
            return self._with_blur(x)
        if x.shape[1] == self.kernel_1_OIHW.shape[1]:
            x = shift_columns(add_neighbours(x, self.num_strips, _NEIGHBOURS))
        return self._in_strips(x, self.num_strips)

    def _with_blur(self, x_BCHW: Tensor) -> Tensor:
        """The blur as a separate pass."""
        dtype = x_BCHW.dtype
        hidden_BCHW = F.conv2d(x_BCHW, self.kernel_1_OIHW.to(dtype), padding=1)
        hidden_BCHW = blur(_activate(hidden_BCHW, self.bias_1_O), 2, 3)  # 3 for an even size; the added row meets zeros
        kernel_OIHW = F.pad(self.kernel_2_OIHW, (0, 1, 0, 1)).to(dtype)
        out_BChw = F.conv2d(space_to_depth(hidden_BCHW), space_to_depth(kernel_OIHW))
        skip_BChw = F.conv2d(blur(x_BCHW, 1, 1, stride=2), self.skip_kernel_OIHW.to(dtype))
        return self._merge(out_BChw, skip_BChw)

    def _in_strips(self, x_NChw: Tensor, num_strips: int) -> Tensor:
        """The blur folded into kernels. Takes strips with neighbours, in shifted blocks, [N, 4 I, n + 3, w + 1]."""
        dtype = x_NChw.dtype
        kernel_OIHW = from_blocks_to_blocks(self.kernel_1_OIHW).to(dtype)
        hidden_NChw = _activate(F.conv2d(x_NChw, kernel_OIHW), repeat(self.bias_1_O, "o -> (pixel o)", pixel=4))
        hidden_NChw = zero_outside(hidden_NChw, num_strips, 1)
        kernel_OIHW = space_to_depth(fold_blur(self.kernel_2_OIHW)).to(dtype)
        skip_kernel_OIHW = space_to_depth(fold_blur(self.skip_kernel_OIHW)).to(dtype)
        return self._merge(F.conv2d(hidden_NChw, kernel_OIHW, padding=(0, 1)),
                           F.conv2d(x_NChw[:, :, 1:-1], skip_kernel_OIHW))

    def _merge(self, out_BChw: Tensor, skip_BChw: Tensor) -> Tensor:
        return (_activate(out_BChw, self.bias_2_O) + skip_BChw) * math.sqrt(0.5)


def blur(x_BCHW: Tensor, before: int, after: int, stride: int = 1) -> Tensor:
    """Filters height and width with `BLUR`, zeros `before` and `after` the image; keeps every `stride`-th pixel."""
    x_BCHW = F.pad(x_BCHW, (before, after, before, after))
    height, width = (size - len(BLUR) + 1 for size in x_BCHW.shape[2:])
    rows = (tap * x_BCHW[:, :, n:n + height:stride] for n, tap in enumerate(BLUR))
    x_BCHW = functools.reduce(torch.add, rows)
    columns = (tap * x_BCHW[..., n:n + width:stride] for n, tap in enumerate(BLUR))
    return functools.reduce(torch.add, columns)


def fold_blur(kernel_OIHW: Tensor) -> Tensor:
    """Folds the blur into the kernel that follows it: [O, I, n, n] to [O, I, n + 3, n + 3].

    It is exact at the border too, since the zeros are around the image before the blur.
    """
    rows = (tap * F.pad(kernel_OIHW, (0, 0, n, 3 - n)) for n, tap in enumerate(BLUR))
    kernel_OIHW = functools.reduce(torch.add, rows)
    columns = (tap * F.pad(kernel_OIHW, (n, 3 - n)) for n, tap in enumerate(BLUR))
    return functools.reduce(torch.add, columns)


def _group_deviation(x_BCHW: Tensor, group_size: int) -> Tensor:
    """Standard deviations within groups of consecutive images, averaged over channels and positions: [B, 1, H, W]."""
    batch_size, _, height, width = x_BCHW.shape
    size = min(group_size, batch_size)
    if batch_size % size:
        raise ValueError(
            f"the batch size must be a multiple of group_size {group_size}, or smaller than it; got {batch_size}")
    groups_NGCHW = rearrange(x_BCHW, "(n g) c h w -> n g c h w", g=size)
    centred_NGCHW = groups_NGCHW - groups_NGCHW.mean(1, keepdim=True)
    deviation_NCHW = torch.sqrt(centred_NGCHW.square().mean(1) + _EPSILON)
    return repeat(deviation_NCHW.mean((1, 2, 3)), "n -> (n g) 1 h w", g=size, h=height, w=width)


def _kernel(*shape_OIHW: int) -> Tensor:
    """A convolution's kernel; initial values are divided by the root of the number of inputs of an output."""
    return parameter(shape_OIHW, Normal(math.prod(shape_OIHW[1:]) ** -0.5), "out", "in", "kh", "kw")


def _dense_kernel(num_inputs: int, num_outputs: int) -> Tensor:
    return parameter((num_inputs, num_outputs), Normal(num_inputs ** -0.5), "in", "out")


def _activate(x: Tensor, bias_O: Tensor) -> Tensor:
    """Adds the bias to the channels (second dimension), then applies the leaky rectifier and the gain."""
    bias = bias_O.to(x.dtype).reshape(-1, *[1] * (x.ndim - 2))
    return F.leaky_relu(x + bias, _SLOPE) * _GAIN
