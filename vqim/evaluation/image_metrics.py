"""Metrics for pairs of images, mostly images and their reconstructions; and images to look at.

    B batch, C image channels, H W image size
"""
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from einops import rearrange
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.evaluation import About, Items, Tally
from vqim.contracts.frozen import Frozen
from vqim.evaluation.distances import MAX_PSNR, Averages, gradient_energy, l1, l2, psnr, ssim
from vqim.evaluation.extractors import file_checksum
from vqim.evaluation.tally_state import part_of
from vqim.frozen import lpips as lpips_network
from vqim.frozen.alexnet import AlexNet
from vqim.frozen.vgg16 import VGG16
from vqim.state.leaf import State
from vqim.tokenizer.losses import logit_laplace
from vqim.tokenizer.model import float_to_images


class Distances:
    """PSNR, SSIM, l1, l2 and sharpness; also logit-Laplace where there is a distribution.

    Sharpness is the gradient energy of all images over that of all originals: 1 if they are alike, less if blurred,
    more if noisy.
    """

    needs = ("originals_BCHW", "images_BCHW")
    frozen: Mapping[str, Frozen] = {}

    def observe(self, items: Items, frozen: Mapping[str, State], context: Context) -> dict[str, Tensor]:
        """See `Metric`."""
        originals_BCHW, images_BCHW = items.originals_BCHW, items.images_BCHW
        assert originals_BCHW is not None and images_BCHW is not None
        values = {name: distance(originals_BCHW, images_BCHW)
                  for name, distance in (("psnr", psnr), ("ssim", ssim), ("l1", l1), ("l2", l2))}
        if items.location_BCHW is not None and items.log_scale_BCHW is not None:
            values["logit_laplace"] = logit_laplace(
                originals_BCHW, items.location_BCHW, items.log_scale_BCHW).mean((1, 2, 3))
        return {**values, "gradient_energy": gradient_energy(images_BCHW),
                "originals_gradient_energy": gradient_energy(originals_BCHW)}

    def tally(self, about: About) -> Tally:
        """See `Metric`."""
        return _DistancesTally()

    def describe(self) -> dict[str, str]:
        """See `Described`."""
        return {"compares": "images with their own originals, one by one", "rounding": "8 bits",
                "definition": f"means over images, of values in [0, 1]; PSNR of each image in dB, at most {MAX_PSNR:g};"
                              " SSIM with a Gaussian window of 11x11 and 1.5, where it lies in the image; sharpness of"
                              " the whole set"}


class _DistancesTally(Averages):
    def result(self) -> dict[str, Any]:
        """The means, and the ratio of the energies."""
        means: dict[str, Any] = super().result()
        energy, originals = means.pop("gradient_energy"), means.pop("originals_gradient_energy")
        return means | {"sharpness": energy / originals if originals else 1.0}

    def values(self) -> dict[str, np.ndarray]:
        """All but the energies, of which the sharpness of a set is no mean."""
        return {name: values_N for name, values_N in self.state().items() if "gradient_energy" not in name}


class Lpips:
    """LPIPS, as `lpips_alexnet` or, on the network that tokenizers train with, `lpips`.

    Args:
      network: 'alexnet', which LPIPS's authors recommend for judging, or 'vgg16'.
    """

    needs = ("originals_BCHW", "images_BCHW")

    def __init__(self, network: Literal["alexnet", "vgg16"] = "alexnet"):
        self._lpips = lpips_network.Lpips(AlexNet() if network == "alexnet" else VGG16())
        self.frozen: Mapping[str, Frozen] = {self._lpips.name: self._lpips}

    def observe(self, items: Items, frozen: Mapping[str, State], context: Context) -> dict[str, Tensor]:
        """See `Metric`."""
        assert items.originals_BCHW is not None and items.images_BCHW is not None
        name = self._lpips.name
        return {name: self._lpips(frozen[name], items.originals_BCHW, items.images_BCHW, context=context)}

    def tally(self, about: About) -> Tally:
        """See `Metric`."""
        return Averages()

    def describe(self) -> dict[str, str]:
        """See `Described`."""
        trunk = self._lpips.trunk
        return {"compares": "images with their own originals, one by one", "rounding": "8 bits",
                "extractor": f"LPIPS 0.1 on {type(trunk).__name__}, no resize, mean over images",
                "weights": f"sha256 {file_checksum(trunk.weights_file)}"}


class ShownImages:
    """Images to look at, evenly spaced over the pass; each is shown under its original, if there is one.

    Args:
      num_images: the number of images.
    """

    needs = ("images_BCHW",)
    frozen: Mapping[str, Frozen] = {}

    def __init__(self, num_images: int = 16):
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        self.num_images = num_images

    def observe(self, items: Items, frozen: Mapping[str, State], context: Context) -> dict[str, Tensor]:
        """See `Metric`."""
        found = {"originals": items.originals_BCHW, "images": items.images_BCHW}
        return {name: float_to_images(images_BCHW) for name, images_BCHW in found.items() if images_BCHW is not None}

    def tally(self, about: About) -> Tally:
        """See `Metric`."""
        return _Shown(self.num_images, about)


def split_shown(rows_BHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `ShownImages` gives, of a pass with originals: the originals, and the images, in their order."""
    count = len(rows_BHWC) // 2
    blocks = [np.split(rows_BHWC[2 * i:2 * min(i + 8, count)], 2) for i in range(0, count, 8)]
    originals_BHWC, images_BHWC = (np.concatenate(halves) for halves in zip(*blocks, strict=True))
    return originals_BHWC, images_BHWC


class _Shown:
    """Keeps images at a fixed interval."""

    def __init__(self, num_images: int, about: About):
        self._num_images, self._name = num_images, about.name
        self._stride = max(1, about.num_items // num_images)
        self._seen = 0
        self._kept: dict[str, list[np.ndarray]] = {}

    def looks_at(self, count: int) -> bool:
        """See `Selective`."""
        is_full = any(len(images) >= self._num_images for images in self._kept.values())
        return not is_full and -self._seen % self._stride < count

    def add(self, observed: Mapping[str, np.ndarray], valid_B: np.ndarray) -> None:
        """See `Tally`."""
        for name, images_BHWC in observed.items():
            self._kept.setdefault(name, []).extend(images_BHWC[valid_B][-self._seen % self._stride::self._stride])
        self._seen += int(np.count_nonzero(valid_B))

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return {"seen": np.array(self._seen), **{f"kept/{name}": np.stack(images) for name, images in self._kept.items()
                                                 if images}}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self._seen = int(state["seen"])
        self._kept = {name: list(images_NHWC) for name, images_NHWC in part_of(state, "kept").items()}

    def result(self) -> dict[str, Any]:
        """`images/<pass>`: rows of eight images, each row under the row of its originals."""
        if not self._seen:
            raise ValueError("there is no image to show: is the split empty?")
        kinds = [np.stack(self._kept[name][:self._num_images]) for name in ("originals", "images")
                 if name in self._kept]
        rows = [rearrange([kind[i:i + 8] for kind in kinds], "p b h w c -> (p b) h w c")
                for i in range(0, len(kinds[0]), 8)]
        return {f"images/{self._name}": np.concatenate(rows)}
