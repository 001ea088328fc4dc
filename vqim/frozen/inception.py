"""The Inception v3 of 2015-12-05 (Szegedy et al., 2016), as FID, sFID and the Inception score use it.

It is not torchvision's: average pooling leaves padding out of its means, the last block pools by maxima, and images are
resized as TensorFlow 1 did. ADM's evaluator, torch-fidelity and this file agree on all that.

    B batch, C channels, H image size, h size that the network is given, Y classes;
    O I H W output and input channels, height and width of a kernel
"""
import dataclasses
import functools

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vqim.contracts.context import Context
from vqim.nn.layers import check_positive
from vqim.state.init import FromArray
from vqim.state.leaf import Leaf, Spec, State
from vqim.third_party import fid_inception as pretrained

INPUT_SIZE = 299
NUM_FEATURES, NUM_SPATIAL, NUM_CLASSES = 2048, 17 * 17 * 7, 1008
_POOL_SIZE = 35, 17, 8  # sizes at which blocks pool by means


@dataclasses.dataclass(frozen=True)
class InceptionFeatures:
    """What `Inception` gives for images, in float32.

    Attributes:
      pooled_BC: the means of the last block over positions, [B, 2048]: FID's features.
      spatial_BC: seven channels of block 6d at each of 17x17 positions, [B, 2023]: sFID's features.
      logits_BY: logits of 1,008 classes, without bias: the Inception score's.
    """

    pooled_BC: Tensor
    spatial_BC: Tensor
    logits_BY: Tensor


@dataclasses.dataclass(frozen=True)
class Inception:
    """FID's Inception, with weights from the user's file, batch normalisation folded.

    Attributes:
      image_size: height and width of the images.
      weights_path: the path of pt_inception-2015-12-05-6726825d.pth or of the same file under torch-fidelity's name.
        FileNotFoundError, which says how to get it, if there is none.
      sha256: the file's checksum; FID's unless a test gives another.
    """

    image_size: int
    weights_path: str | None = None
    sha256: str = dataclasses.field(default=pretrained.SHA256, repr=False)

    def __post_init__(self) -> None:
        check_positive(image_size=self.image_size)
        pretrained.find_weights(self.weights_path)

    @property
    def weights_file(self) -> str:
        """The path of the file with its weights."""
        return pretrained.find_weights(self.weights_path)

    def init_spec(self) -> Spec:
        """The 23.8 million constants, read from the file when the runtime fills them, and fixed matrices."""
        resize = functools.partial(tensorflow_resize_matrix, self.image_size, INPUT_SIZE)
        spec: Spec = {"input/resize_hH": Leaf((INPUT_SIZE, self.image_size), FromArray(resize), ("out", "in"),
                                              saved=False)}
        for size in _POOL_SIZE:
            spec[f"pool/scale_{size}"] = Leaf(
                (size, size), FromArray(functools.partial(_pool_scale, size)), ("out", "in"), saved=False)
        for name, shape in pretrained.CONVOLUTIONS.items():
            spec[f"{name}/kernel_OIHW"] = self._leaf(f"{name}/kernel_OIHW", shape, ("out", "in", "kh", "kw"))
            spec[f"{name}/bias_O"] = self._leaf(f"{name}/bias_O", shape[:1], ("features",))
        spec["classifier/kernel_IY"] = self._leaf("classifier/kernel_IY", (NUM_FEATURES, NUM_CLASSES), ("in", "out"))
        return spec

    def __call__(self, arrays: State, images_BCHW: Tensor, *, context: Context) -> InceptionFeatures:
        """Features of RGB images in [0, 1] of `image_size`; else ValueError.

        Args:
          arrays: named as in `init_spec`.
          images_BCHW: images; they are rounded to 8 bits, as the graph takes bytes.
          context: its dtype is used for the convolutions, its kernels for the resize.
        """
        if images_BCHW.ndim != 4 or images_BCHW.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(f"Inception with image_size {self.image_size} takes images [batch, 3, {self.image_size}, "
                             f"{self.image_size}], got {tuple(images_BCHW.shape)}")
        bytes_BChw = _resize(arrays["input/resize_hH"], (images_BCHW.float() * 255).round(), context)
        x = _Network(arrays, (bytes_BChw - 128) / 128, context.dtype)
        for name, stride, padding in (("Conv2d_1a_3x3", 2, 0), ("Conv2d_2a_3x3", 1, 0), ("Conv2d_2b_3x3", 1, 1)):
            x.x_BChw = x.convolve(name, x.x_BChw, stride, (padding, padding))
        x.x_BChw = F.max_pool2d(x.x_BChw, 3, 2)
        for name in ("Conv2d_3b_1x1", "Conv2d_4a_3x3"):
            x.x_BChw = x.convolve(name, x.x_BChw)
        x.x_BChw = F.max_pool2d(x.x_BChw, 3, 2)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x.block_5(name)
        x.block_6a()
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            first_BChw = x.block_6(name)
            if name == "Mixed_6d":  # in ADM's graph: mixed_6/conv, the first seven channels, in its order of axes
                spatial_BC = rearrange(first_BChw[:, :7].float(), "b c h w -> b (h w c)")
        x.block_7a()
        x.block_7("Mixed_7b", largest=False)
        x.block_7("Mixed_7c", largest=True)
        pooled_BC = x.x_BChw.float().mean((2, 3))
        return InceptionFeatures(pooled_BC, spatial_BC,
                                 context.kernels.precise_matmul(pooled_BC, arrays["classifier/kernel_IY"]))

    def _leaf(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Leaf:
        def load() -> np.ndarray:  # a copy, since the cached arrays must not become a training state
            return pretrained.read_weights(pretrained.find_weights(self.weights_path), self.sha256)[name].copy()

        return Leaf(shape, FromArray(load), axes, saved=False)


class _Network:
    """The blocks on their way: each takes `x_BChw` and leaves its outputs there."""

    def __init__(self, arrays: State, x_BChw: Tensor, dtype: torch.dtype):
        # A CPU's many narrow convolutions are up to twice as fast with channels last; XLA lays arrays out itself.
        self._arrays, self.x_BChw = arrays, x_BChw.to(dtype, memory_format=torch.channels_last)

    def convolve(self, name: str, x_BChw: Tensor, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
        """A convolution and a rectifier."""
        kernel_OIHW, bias_O = (self._arrays[f"{name}/{part}"].to(x_BChw.dtype) for part in ("kernel_OIHW", "bias_O"))
        return F.relu(F.conv2d(x_BChw, kernel_OIHW, bias_O, stride, padding))

    def chain(self, block: str, *names: str, stride: int = 1) -> Tensor:
        """Convolutions one after the other at the same size, the last with a stride and then without padding."""
        x_BChw = self.x_BChw
        for name in names:
            height, width = self._arrays[f"{block}.{name}/kernel_OIHW"].shape[2:]
            last = stride > 1 and name == names[-1]
            padding = (0, 0) if last else (height // 2, width // 2)
            x_BChw = self.convolve(f"{block}.{name}", x_BChw, stride if last else 1, padding)
        return x_BChw

    def means(self) -> Tensor:
        """Means of 3x3 neighbours, of fewer at the edge."""
        scale_hw = self._arrays[f"pool/scale_{self.x_BChw.shape[2]}"].to(self.x_BChw.dtype)
        return F.avg_pool2d(self.x_BChw, 3, 1, 1) * scale_hw

    def block_5(self, name: str) -> None:
        """35x35."""
        doubled = self.chain(name, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        pooled = self.convolve(f"{name}.branch_pool", self.means())
        self.x_BChw = torch.cat([self.chain(name, "branch1x1"), self.chain(name, "branch5x5_1", "branch5x5_2"),
                                 doubled, pooled], 1)

    def block_6a(self) -> None:
        """35x35 to 17x17."""
        doubled = self.chain("Mixed_6a", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3", stride=2)
        self.x_BChw = torch.cat([self.chain("Mixed_6a", "branch3x3", stride=2), doubled,
                                 F.max_pool2d(self.x_BChw, 3, 2)], 1)

    def block_6(self, name: str) -> Tensor:
        """17x17; returns the first branch."""
        first = self.chain(name, "branch1x1")
        single = self.chain(name, *(f"branch7x7_{i}" for i in range(1, 4)))
        doubled = self.chain(name, *(f"branch7x7dbl_{i}" for i in range(1, 6)))
        self.x_BChw = torch.cat([first, single, doubled, self.convolve(f"{name}.branch_pool", self.means())], 1)
        return first

    def block_7a(self) -> None:
        """17x17 to 8x8."""
        single = self.chain("Mixed_7a", "branch3x3_1", "branch3x3_2", stride=2)
        seven = self.chain("Mixed_7a", *(f"branch7x7x3_{i}" for i in range(1, 5)), stride=2)
        self.x_BChw = torch.cat([single, seven, F.max_pool2d(self.x_BChw, 3, 2)], 1)

    def block_7(self, name: str, largest: bool) -> None:
        """8x8; the last block pools by maxima where the others take means."""
        single = [self.chain(name, "branch3x3_1", f"branch3x3_2{side}") for side in "ab"]
        doubled = [self.chain(name, "branch3x3dbl_1", "branch3x3dbl_2", f"branch3x3dbl_3{side}") for side in "ab"]
        pooled = F.max_pool2d(self.x_BChw, 3, 1, 1) if largest else self.means()
        self.x_BChw = torch.cat([self.chain(name, "branch1x1"), *single, *doubled,
                                 self.convolve(f"{name}.branch_pool", pooled)], 1)


def _resize(resize_hH: Tensor, images_BCHW: Tensor, context: Context) -> Tensor:
    """The product along both sides, in full float32: a TPU would otherwise round 8-bit images to 8 bits of 16."""
    wide_BCHw = context.kernels.precise_matmul(images_BCHW, resize_hH.mT)
    return context.kernels.precise_matmul(wide_BCHw.mT, resize_hH.mT).mT


def tensorflow_resize_matrix(size_in: int, size_out: int) -> np.ndarray:
    """TensorFlow 1's bilinear resize along one side, without antialiasing: float32 [size_out, size_in].

    Pixel i of the result lies at i * size_in / size_out of the source, from corner to corner and not from centre to
    centre. Positions are float32, as in TensorFlow.
    """
    positions_h = np.arange(size_out, dtype=np.float32) * np.float32(size_in / size_out)
    below_h = np.floor(positions_h).astype(np.int64)
    above_h, weight_h = np.minimum(below_h + 1, size_in - 1), positions_h - below_h.astype(np.float32)
    matrix_hH, rows = np.zeros((size_out, size_in), np.float32), np.arange(size_out)
    np.add.at(matrix_hH, (rows, below_h), 1 - weight_h)
    np.add.at(matrix_hH, (rows, above_h), weight_h)
    return matrix_hH


def _pool_scale(size: int) -> np.ndarray:
    """9 over the number of neighbours in a window of 3x3 at each position: means of 9 count zeros outside."""
    counts = np.full(size, 3.0)
    counts[[0, -1]] = 2
    return (9 / np.outer(counts, counts)).astype(np.float32)
