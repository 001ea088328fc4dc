"""Frozen networks as makers of features for distances between sets of images, and the names that they give these.

A Frechet distance in another network than FID's is no FID: each extractor has its own names, and no setting gives one
the name of another.

    B batch, C channels of features, S values of features that keep their place, Y classes
"""
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from absl import logging
from einops import rearrange
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.frozen import Frozen
from vqim.evaluation.feature_sets import KEEPING
from vqim.evaluation.inception_score import NUM_SPLITS
from vqim.evaluation.neighbours import DENSITY_NEIGHBOURS
from vqim.frozen.efficientnet import EfficientNetLite0
from vqim.frozen.inception import Inception
from vqim.frozen.vgg16 import VGG16
from vqim.state.leaf import State

MEASURES = ("fid", "sfid", "inception_score", "kid", "precision", "recall", "density", "coverage")
_SPATIAL_CHANNELS = 40  # of EfficientNet-Lite0's last 7x7 map, for about as many values as sFID has


@dataclasses.dataclass(frozen=True)
class Extracted:
    """Features of a batch of images, float32.

    Attributes:
      pooled_BC: means over positions; for Frechet distances, KID and neighbours.
      spatial_BS: features at positions, for sFID; None where the network has none.
      logits_BY: logits of classes, for the Inception score; None where the network has none.
    """

    pooled_BC: Tensor
    spatial_BS: Tensor | None = None
    logits_BY: Tensor | None = None


class Extractor(Protocol):
    """Makes features of images.

    Attributes:
      names: the measures that it has, by their names in `MEASURES`, with the names that they have in results.
      frozen: its network, by the name of its arrays.
    """

    names: Mapping[str, str]
    frozen: Mapping[str, Frozen]

    def __call__(self, frozen: Mapping[str, State], images_BCHW: Tensor, context: Context) -> Extracted:
        """Features of images in [0, 1]."""
        ...

    def describe(self) -> dict[str, str]:
        """What decides its features, for a result's protocol: network, resize, and the checksum of its weights."""
        ...


class InceptionFeatures:
    """FID's Inception: `fid`, `sfid`, `inception_score`, `kid`, `precision`, `recall`, `density`, `coverage`."""

    names: Mapping[str, str] = {measure: measure for measure in MEASURES}

    def __init__(self, network: Inception):
        self.network = network
        self.frozen: Mapping[str, Frozen] = {"fid_inception": network}

    def __call__(self, frozen: Mapping[str, State], images_BCHW: Tensor, context: Context) -> Extracted:
        """See `Extractor`."""
        found = self.network(frozen["fid_inception"], images_BCHW, context=context)
        return Extracted(found.pooled_BC, found.spatial_BC, found.logits_BY)

    def describe(self) -> dict[str, str]:
        """See `Extractor`."""
        return {"extractor": "FID's Inception v3 of 2015-12-05, TensorFlow 1's bilinear resize to 299x299, 8 bits",
                "weights": f"sha256 {file_checksum(self.network.weights_file)}"}


class ProxyFeatures:
    """EfficientNet-Lite0, whose weights a package has, in Inception's place: `proxy_fid` and so on.

    `proxy_sfid` is measured in the first 40 channels of the last map, at 7x7 positions.
    """

    names: Mapping[str, str] = {measure: f"proxy_{measure}" for measure in MEASURES}

    def __init__(self, network: EfficientNetLite0):
        self.network = network
        self.frozen: Mapping[str, Frozen] = {network.name: network}

    def __call__(self, frozen: Mapping[str, State], images_BCHW: Tensor, context: Context) -> Extracted:
        """See `Extractor`."""
        found = self.network(frozen[self.network.name], images_BCHW, context=context)
        last_BChw = found.maps[-1].float()
        spatial_BS = rearrange(last_BChw[:, :_SPATIAL_CHANNELS], "b c h w -> b (h w c)")
        return Extracted(last_BChw.mean((2, 3)), spatial_BS, found.logits_BY)

    def describe(self) -> dict[str, str]:
        """See `Extractor`."""
        size = self.network.input_size
        return {"extractor": f"EfficientNet-Lite0 in Inception's place, antialiased bilinear resize to {size}x{size}",
                "weights": f"sha256 {file_checksum(self.network.weights_file)}"}


def possible(extractor: Extractor, num_images: int, measures: Sequence[str] = MEASURES) -> tuple[list[str], list[str]]:
    """Of some measures those that so many images are enough for, and a sentence for each that they are not."""
    needed = {"inception_score": NUM_SPLITS} | dict.fromkeys(KEEPING[1:], DENSITY_NEIGHBOURS + 1)
    asked = [measure for measure in extractor.names if measure in measures]
    lacking = [measure for measure in asked if num_images < needed.get(measure, 2)]
    return ([measure for measure in asked if measure not in lacking],
            [f"{extractor.names[measure]} needs at least {needed.get(measure, 2)} images, got {num_images}"
             for measure in lacking])


def proxy_if_installed(image_size: int) -> list[ProxyFeatures]:
    """EfficientNet-Lite0 for images of this size; an empty list, and a warning, where its package is not installed."""
    try:
        return [ProxyFeatures(EfficientNetLite0(image_size))]
    except FileNotFoundError as error:
        logging.warning("Without proxy_fid: %s", error)
        return []


class VGG16Features:
    """VGG16's last convolution, means over positions, at the images' own size: `vgg_fd`, `vgg_kid` and so on."""

    names: Mapping[str, str] = {
        measure: f"vgg_{'fd' if measure == 'fid' else measure}" for measure in MEASURES
        if measure not in ("sfid", "inception_score")}

    def __init__(self, network: VGG16):
        self.network = network
        self.frozen: Mapping[str, Frozen] = {network.name: network}

    def __call__(self, frozen: Mapping[str, State], images_BCHW: Tensor, context: Context) -> Extracted:
        """See `Extractor`."""
        return Extracted(self.network(frozen[self.network.name], images_BCHW, context=context)[-1].float().mean((2, 3)))

    def describe(self) -> dict[str, str]:
        """See `Extractor`."""
        return {"extractor": "VGG16's last convolution, no resize",
                "weights": f"sha256 {file_checksum(self.network.weights_file)}"}


@functools.lru_cache(maxsize=16)
def file_checksum(path: str) -> str:
    """The first 16 hexadecimal digits of a file's sha256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def named(names: Mapping[str, str], measure: str) -> str:
    """The name of a result such as 'kid_std': the extractor's for the measure it begins with."""
    base = max((base for base in MEASURES if measure == base or measure.startswith(f"{base}_")), key=len)
    return names[base] + measure.removeprefix(base)
