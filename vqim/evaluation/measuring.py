"""Measures sets of images that no run made, and compares two of them: what `launch.compare` does.

    N images of a split, B batch, H W image size
"""
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from vqim.contracts.context import Context
from vqim.contracts.data import Dataset
from vqim.contracts.placing import place
from vqim.contracts.runtime import Runtime
from vqim.evaluation.distances import unit_range
from vqim.evaluation.extractors import Extractor, named, possible
from vqim.evaluation.feature_sets import KEEPING, NUM_KEPT, FeatureSet, Statistics, compare
from vqim.evaluation.frechet import Gaussian
from vqim.evaluation.protocol import Fingerprint, image_checksums
from vqim.evaluation.wavelets import LEVEL, PacketMoments, haar_packets, scale, wavelet_distance
from vqim.state.leaf import State


def images_and_labels(data: Dataset, split: str = "validation") -> tuple[np.ndarray, np.ndarray]:
    """All images of a split as evaluation sees them, uint8 [N, H, W, 3], and their labels."""
    batches = list(data.evaluation(64, split=split))
    return (np.concatenate([batch["images"][batch["valid"]] for batch in batches]),
            np.concatenate([batch["labels"][batch["valid"]] for batch in batches]))


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of a set of images.

    Attributes:
      name: what the user calls it: a path.
      count: the number of images; 0 where a file of statistics does not say it.
      image_size: 'HxW', or 'not said'.
      fingerprint: of the images, or of the file of statistics.
      statistics: for each extractor by its class's name.
      scores: results of the images alone, such as the Inception score, likewise.
      packets: mean and covariance of each wavelet band; None for a file, or for sizes that have no packets.
    """

    name: str
    count: int
    image_size: str
    fingerprint: str
    statistics: Mapping[str, Statistics]
    scores: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    packets: list[Gaussian] | None = None


def measure_images(
    name: str, num_images: int, batches: Iterable[np.ndarray], extractors: Sequence[Extractor], runtime: Runtime,
    num_kept: int = NUM_KEPT,
) -> Measured:
    """Goes once through a set of images.

    Args:
      name: what the user calls the set.
      num_images: the number of images.
      batches: uint8 [B, H, W, 3], all of one size.
      extractors: networks whose features are added up; each has its constants placed here.
      runtime: where they compute.
      num_kept: the largest number of images whose features are kept for KID and neighbours.

    Raises:
      ValueError: there are fewer than two images.
    """
    if num_images < 2:
        raise ValueError(f"{name}: a set needs at least 2 images, as one has no covariance; got {num_images}")
    sets = {type(extractor).__name__: FeatureSet(num_images, possible(extractor, num_images)[0], num_kept)
            for extractor in extractors}
    arrays = [{network: place(frozen.init_spec(), 0, runtime) for network, frozen in extractor.frozen.items()}
              for extractor in extractors]
    moments, fingerprint, size = None, Fingerprint(), (0, 0)
    for images_BHWC in batches:
        size = (images_BHWC.shape[1], images_BHWC.shape[2])
        images_BCHW = unit_range(images_BHWC)
        fingerprint.add(image_checksums(images_BCHW).numpy())
        if not any(side % 2**LEVEL for side in size):
            packets_BPD = haar_packets(images_BCHW).numpy()
            moments = moments or PacketMoments(*packets_BPD.shape[1:])
            moments.add(packets_BPD)
        for extractor, own in zip(extractors, arrays, strict=True):
            sets[type(extractor).__name__].add(**_extract(extractor, own, images_BHWC, runtime))
    return Measured(
        name, num_images, f"{size[0]}x{size[1]}", f"images {fingerprint.text()}",
        {key: found.statistics() for key, found in sets.items()},
        {key: found.inception_score() for key, found in sets.items()},
        moments.gaussians(scale()) if moments else None)


def measure_array(
    name: str, images_NHWC: np.ndarray, extractors: Sequence[Extractor], runtime: Runtime, batch_size: int = 64,
) -> Measured:
    """The same for images in memory, uint8 [N, H, W, 3]."""
    batches = (images_NHWC[first:first + batch_size] for first in range(0, len(images_NHWC), batch_size))
    return measure_images(name, len(images_NHWC), batches, extractors, runtime)


def _extract(
    extractor: Extractor, arrays: Mapping[str, State], images_BHWC: np.ndarray, runtime: Runtime,
) -> dict[str, np.ndarray]:
    images_BCHW = runtime.put({"images": np.moveaxis(images_BHWC, 3, 1)})["images"].float() / 255
    with torch.no_grad():
        found = extractor(arrays, images_BCHW, Context(runtime.kernels))
    given = {name: value for name, value in vars(found).items() if value is not None}
    return dict(zip(given, runtime.fetch(list(given.values())), strict=True))


def compare_sets(
    images: Measured, reference: Measured, extractors: Sequence[Extractor],
) -> tuple[dict[str, float], list[str]]:
    """Every measure of a set of images against a reference, and notes on what could not be measured or is biased.

    Raises:
      ValueError: the sets have images of different sizes.
    """
    sizes = {images.image_size, reference.image_size} - {"not said"}
    if len(sizes) > 1:
        raise ValueError(f"{images.name} has images of {images.image_size}, {reference.name} of "
                         f"{reference.image_size}: sets of different sizes cannot be compared. Give --image_size, "
                         "which crops and scales both, and is named in the result")
    results: dict[str, float] = {}
    notes = [] if images.count == reference.count else [
        f"the counts differ, {images.count or 'not said'} and {reference.count or 'not said'}: compare only with "
        "results of the same counts, since Frechet distances fall with them"]
    if images.packets is not None and reference.packets is not None:
        results["fwd"] = wavelet_distance(images.packets, reference.packets)
    else:
        notes.append(f"fwd needs images on both sides, with sides in multiples of {2**LEVEL}; --image_size crops and "
                     "scales")
    for extractor in extractors:
        key = type(extractor).__name__
        if key not in images.statistics or key not in reference.statistics:
            continue
        pair = images.statistics[key], reference.statistics[key]
        measures, lacking = possible(extractor, min(
            [measured.count for measured in (images, reference) if measured.count], default=2))
        notes += lacking
        found = dict(images.scores.get(key, {}))
        # Neighbours of one set serve several measures; what a file of statistics lacks is noted one by one.
        for group in (("fid",), ("sfid",), ("kid",), KEEPING[1:]):
            try:
                found |= compare(*pair, [measure for measure in group if measure in measures])
            except ValueError as error:
                notes.append(str(error))
        results |= {named(extractor.names, measure): value for measure, value in found.items()}
        notes += _few(extractor.names["fid"], *pair)
    return results, notes


def comparison_protocol(images: Measured, reference: Measured, crop: str = "none") -> dict[str, str | int]:
    """How two sets were compared, but for the networks, which describe themselves."""
    return {"compares": "a set of images with a reference", "images": f"{images.name}: {images.fingerprint}",
            "count": images.count, "reference": f"{reference.name}: {reference.fingerprint}",
            "reference count": reference.count or "not said", "image size": images.image_size, "crop": crop,
            "rounding": "8 bits"}


def _few(name: str, images: Statistics, reference: Statistics) -> list[str]:
    """A note if there are fewer images than features, which biases a Frechet distance upwards."""
    counts = [one.pooled.count for one in (images, reference) if one.pooled is not None and one.pooled.count]
    width = len(images.pooled.mean_D) if images.pooled is not None else 0
    if counts and min(counts) <= width:
        return [f"{name} of {min(counts)} images in {width} features is biased upwards; compare it only with another "
                "of the same count"]
    return []
