"""How close reconstructions are to their originals, and how close trivial reconstructions would be.

The measures compare two batches of float images in [0, 1], image by image, in float32 and without matrix
products, whose factors a TPU would round. They run on any device; `Averages` gathers their results on the host.

    B batch, C channels, H height, W width; N images in a set
"""
import functools
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

MAX_PSNR = 100.0  # for identical images, whose PSNR would be infinite
_WINDOW_SIZE, _WINDOW_STD = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def l1(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Mean absolute errors_B."""
    return (a_BCHW - b_BCHW).abs().mean((1, 2, 3))


def l2(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Mean squared errors_B."""
    return (a_BCHW - b_BCHW).square().mean((1, 2, 3))


def psnr(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratios_B in dB, at most `MAX_PSNR`.

    A set's PSNR, wherever this project reports one, is the mean of these over its images. That is more than the
    PSNR of the set's pooled squared error, which some libraries report.
    """
    return -10 * torch.log10(l2(a_BCHW, b_BCHW).clamp(min=10 ** (-MAX_PSNR / 10)))


def ssim(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Structural similarities_B of Wang et al. (2004), mean over channels and positions.

    It uses a Gaussian window, 11x11 with standard deviation 1.5, only where it is inside the image; population
    covariances; constants 0.01^2 and 0.03^2. scikit-image calls this `gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1`.

    Raises:
      ValueError: the images are smaller than the window.
    """
    if min(a_BCHW.shape[2:]) < _WINDOW_SIZE:
        raise ValueError(
            f"SSIM's window needs images of at least {_WINDOW_SIZE}x{_WINDOW_SIZE}, got {tuple(a_BCHW.shape)}")
    a, b = a_BCHW.float(), b_BCHW.float()
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    variance_a = _window_mean(a * a) - mean_a * mean_a
    variance_b = _window_mean(b * b) - mean_b * mean_b
    covariance = _window_mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a * mean_a + mean_b * mean_b + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return (luminance * structure).mean((1, 2, 3))


def gradient_energy(images_BCHW: Tensor) -> Tensor:
    """Mean squared differences_B between neighbouring pixels, in rows and in columns; blur lowers it."""
    across_B = (images_BCHW[..., 1:] - images_BCHW[..., :-1]).square().mean((1, 2, 3))
    return across_B + (images_BCHW[..., 1:, :] - images_BCHW[..., :-1, :]).square().mean((1, 2, 3))


def _window_mean(x_BCHW: Tensor) -> Tensor:
    """Gaussian mean around every position where the window fits: [B, C, H - 10, W - 10]."""
    taps = np.exp(-0.5 * ((np.arange(_WINDOW_SIZE) - _WINDOW_SIZE // 2) / _WINDOW_STD) ** 2)
    taps /= taps.sum()
    for dim in (2, 3):
        size = x_BCHW.shape[dim] - _WINDOW_SIZE + 1
        x_BCHW = functools.reduce(
            torch.add, [float(tap) * x_BCHW.narrow(dim, i, size) for i, tap in enumerate(taps)])
    return x_BCHW


class Averages:
    """Means of per-image values over a set that comes in batches, the last of which may be padded.

    The values are kept, 4 bytes each: a mean does not depend on the batches, and runs are compared image by image. A
    class that inherits and holds more has to extend `state` and `restore`.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[np.ndarray]] = {}

    def add(self, values: Mapping[str, np.ndarray], valid_B: np.ndarray) -> None:
        """Adds a batch.

        Args:
          values: arrays [B] by name, the same names in every batch.
          valid_B: bool, False for padding, whose values are ignored whatever they are.
        """
        if self._values and values.keys() != self._values.keys():
            raise ValueError(f"expected values of {sorted(self._values)} as in earlier batches, got {sorted(values)}")
        for name, values_B in values.items():
            self._values.setdefault(name, []).append(np.asarray(values_B)[valid_B])

    def result(self) -> dict[str, float]:
        """The means over all valid images so far.

        Raises:
          ValueError: there were no valid images.
        """
        values = self.state()
        if not values or not len(next(iter(values.values()))):
            raise ValueError("there was no valid image to average over: is the validation set empty?")
        return {name: float(values_N.mean(dtype=np.float64)) for name, values_N in values.items()}

    def values(self) -> dict[str, np.ndarray]:
        """See `ItemValues`: here of all valid images."""
        return self.state()

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return {name: np.concatenate(parts) for name, parts in self._values.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self._values = {name: [values_N] for name, values_N in state.items()}


def mean_image_psnr(train_images_NHWC: np.ndarray, validation_images_NHWC: np.ndarray) -> float:
    """PSNR, in dB, if the mean of all training images is the reconstruction of every validation image.

    Args:
      train_images_NHWC: uint8 images.
      validation_images_NHWC: uint8 images of the same size.
    """
    mean_HWC = train_images_NHWC.mean(0, dtype=np.float64)
    guess_CHW = torch.from_numpy(rearrange(mean_HWC, "h w c -> c h w") / 255).float()
    images_NCHW = unit_range(validation_images_NHWC)
    return psnr(images_NCHW, guess_CHW.expand_as(images_NCHW)).mean().item()


def downscaled_copy(images_BHWC: np.ndarray, factor: int = 4) -> np.ndarray:
    """The images scaled down by `factor` and up again, as from a thumbnail.

    Both scalings are bicubic, the first one antialiased. A tokenizer that is not better has learnt only to blur.

    Args:
      images_BHWC: uint8 images; height and width are at least `factor`.
      factor: the factor for both height and width.

    Returns:
      uint8 of the same shape.
    """
    if factor < 1 or min(images_BHWC.shape[1:3]) < factor:
        raise ValueError(f"factor must be from 1 to the images' size {images_BHWC.shape[1:3]}, got {factor}")
    height, width = images_BHWC.shape[1:3]
    images_BCHW = unit_range(images_BHWC)
    small_BCHW = F.interpolate(images_BCHW, (height // factor, width // factor), mode="bicubic", antialias=True)
    large_BCHW = F.interpolate(small_BCHW, (height, width), mode="bicubic").clamp(0, 1)
    return rearrange((large_BCHW * 255).round().to(torch.uint8).numpy(), "b c h w -> b h w c")


def unit_range(images_BHWC: np.ndarray) -> Tensor:
    """uint8 host images as float32 images_BCHW in [0, 1].

    Raises:
      TypeError: they are not uint8.
    """
    if images_BHWC.dtype != np.uint8:
        raise TypeError(f"expected uint8 images, got {images_BHWC.dtype}")
    return torch.from_numpy(rearrange(images_BHWC, "b h w c -> b c h w").astype(np.float32) / 255)

