"""Haar wavelet packets of images, for a Frechet distance that needs no trained network.

Veeramacheneni et al. (2024), "Frechet Wavelet Distance": images are cut into 4^L frequency bands, and the distance is
the mean of the bands' Frechet distances. It is of a frequency's content what FID is of a network's features, it has no
weights and no bias towards ImageNet, and it is the same on every machine.

    B batch, C channels, H W image size, P bands, D values of an image in a band
"""
from collections.abc import Mapping

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vqim.evaluation.frechet import Gaussian, Moments, frechet_distance
from vqim.evaluation.tally_state import join, part_of

LEVEL = 4  # the paper's, and the default of its authors' package
_BLOCK_VALUES = 1 << 24  # values that wait for their block: 64 MiB


def haar_packets(images_BCHW: Tensor, level: int = LEVEL) -> Tensor:
    """The bands of a full Haar wavelet packet decomposition, in natural order.

    Sums and differences alone, with neither products nor roots: of 8-bit images they are whole numbers below 2^24, and
    exact in float32 on any device. A product with the matrix of the transform would be rounded on a TPU.

    Args:
      images_BCHW: images in [0, 1], rounded to 8 bits or to be rounded here.
      level: the number L of decompositions.

    Returns:
      float32 [B, 4^L, C H W / 4^L], the orthonormal packets of the images in [0, 1] times `scale(level)`.

    Raises:
      ValueError: height and width are no multiples of 2^L.
    """
    check_size(images_BCHW.shape[2], images_BCHW.shape[3], level)
    x_BPCHW = (images_BCHW.float() * 255).round()[:, None]
    for _ in range(level):
        x_BPCHW = _halve(_halve(x_BPCHW, 3), 4)
    return rearrange(x_BPCHW, "b p c h w -> b p (c h w)")


def scale(level: int = LEVEL) -> float:
    """What `haar_packets` gives over the orthonormal packets of images in [0, 1]: 2 for each level, and 255."""
    return 255.0 * 2**level


def check_size(height: int, width: int, level: int = LEVEL) -> None:
    """Raises ValueError unless images of this size have whole packets."""
    if height % 2**level or width % 2**level:
        raise ValueError(f"image_size: wavelet packets of level {level} need a height and width in multiples of "
                         f"{2**level}, got {height}x{width}")


def _halve(x_BPCHW: Tensor, dim: int) -> Tensor:
    """Sums and differences of neighbours along one dimension, as twice the number of bands."""
    first, second = x_BPCHW.unflatten(dim, (-1, 2)).unbind(dim + 1)
    return torch.stack([first + second, first - second], 2).flatten(1, 2)


class PacketMoments:
    """Adds up mean and covariance of each band; like `Moments`, the same to a bit for any batch size.

    At 256x256 the covariances of level 4 take 256 matrices of 768x768: 1.2 GB for each set.
    """

    def __init__(self, num_packets: int, width: int):
        rows = max(16, _BLOCK_VALUES // (num_packets * width))
        self._bands = [Moments(width, min(rows, 512)) for _ in range(num_packets)]

    @property
    def count(self) -> int:
        """The number of images so far."""
        return self._bands[0].count + self._bands[0].num_waiting

    def add(self, packets_BPD: np.ndarray) -> None:
        """Adds images."""
        for number, moments in enumerate(self._bands):
            moments.add(packets_BPD[:, number])

    def state(self) -> dict[str, np.ndarray]:
        """All that it holds, for `restore`; nothing is copied."""
        return join({str(number): moments.state() for number, moments in enumerate(self._bands)})

    @classmethod
    def restored(cls, state: Mapping[str, np.ndarray]) -> "PacketMoments":
        """What `state` was of, with the same result as if there had been no break."""
        num_packets = sum(name.endswith("/mean") for name in state)
        found = cls(num_packets, len(state["0/mean"]))
        for number, moments in enumerate(found._bands):
            moments.restore(part_of(state, str(number)))
        return found

    def gaussians(self, factor: float) -> list[Gaussian]:
        """Mean and covariance of each band over `factor`; ValueError for fewer than two images."""
        found = [moments.gaussian() for moments in self._bands]
        return [Gaussian(one.mean_D / factor, one.covariance_DD / factor**2, one.count) for one in found]


def wavelet_distance(a: list[Gaussian], b: list[Gaussian]) -> float:
    """The Frechet wavelet distance: the mean over bands. ValueError for sets of images of different sizes."""
    if len(a) != len(b) or len(a[0].mean_D) != len(b[0].mean_D):
        raise ValueError(f"both sets must be of images of one size, got {len(a)} bands of {len(a[0].mean_D)} values "
                         f"and {len(b)} of {len(b[0].mean_D)}")
    return float(np.mean([frechet_distance(one, other) for one, other in zip(a, b, strict=True)]))
