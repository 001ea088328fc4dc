"""Metrics of a whole set of images against a set of real ones: FID and its like, and the wavelet distance.

Reconstructions are compared with their own originals, samples with the images of a split (`Samples.reference_split`) or
with a file of statistics.

    B batch, C channels, H W image size, P bands, D features
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.evaluation import About, Items, Tally
from vqim.contracts.frozen import Frozen
from vqim.evaluation.extractors import Extractor, file_checksum, named, possible
from vqim.evaluation.feature_sets import NUM_KEPT, FeatureSet, Statistics, compare
from vqim.evaluation.protocol import Fingerprint, as_text, image_checksums, of_result
from vqim.evaluation.statistics_files import read_statistics
from vqim.evaluation.tally_state import join, part_of
from vqim.evaluation.wavelets import LEVEL, PacketMoments, haar_packets, scale, wavelet_distance
from vqim.state.leaf import State

_REAL, _REAL_VALID = "real", "real_valid"


class FeatureDistances:
    """Distances in the features of a frozen network, all from one pass of the images through it.

    Results have the extractor's names: `fid` and so on in FID's Inception alone, `proxy_fid` in EfficientNet-Lite0,
    `vgg_fd` in VGG16. `protocol/<name>` says how the numbers were measured.

    Args:
      extractor: what makes the features.
      measures: what to measure, of 'fid', 'sfid', 'inception_score', 'kid', 'precision', 'recall', 'density' and
        'coverage', as these are called in Inception; None measures all that the extractor has.
      reference: a file of statistics of real images, ADM's or by `launch.compare --write_statistics`, for samples.
        Reconstructions have their originals, and a file is refused.
      num_kept: the largest number of images of a set whose features are kept for KID and neighbours.
    """

    needs = ("images_BCHW",)

    def __init__(
        self, extractor: Extractor, measures: Sequence[str] | None = None, reference: str | None = None,
        num_kept: int = NUM_KEPT,
    ):
        self.extractor, self.num_kept = extractor, num_kept
        self.measures = tuple(extractor.names) if measures is None else tuple(measures)
        if unknown := [measure for measure in self.measures if measure not in extractor.names]:
            raise ValueError(f"measures: {type(extractor).__name__} has {', '.join(extractor.names)}, got "
                             f"{', '.join(map(repr, unknown))}")
        if num_kept < 1:
            raise ValueError(f"num_kept must be at least 1, got {num_kept}")
        self.compares = set(self.measures) != {"inception_score"}  # which is of the images alone
        self.frozen: Mapping[str, Frozen] = extractor.frozen
        self.reference = reference
        self._file = None if reference is None else _read_reference(reference, extractor, self.measures)

    def observe(self, items: Items, frozen: Mapping[str, State], context: Context) -> dict[str, Tensor]:
        """See `Metric`."""
        assert items.images_BCHW is not None
        size = f"{items.images_BCHW.shape[2]}x{items.images_BCHW.shape[3]}"
        if self._file is not None and self._file[1].get("image size", size) != size:
            raise ValueError(f"reference: {self.reference} is of images of {self._file[1]['image size']}, these have "
                             f"{size}: images of different sizes cannot be compared")
        found = self._extract("images", items.images_BCHW, frozen, context)
        if not self.compares:
            return found
        real_BCHW, about_them = real_images(items, type(self).__name__, self.reference)
        if real_BCHW is not None:
            found |= self._extract(_REAL, real_BCHW, frozen, context)
        return found | about_them

    def tally(self, about: About) -> Tally:
        """See `Metric`; ValueError if there are too few images for a measure."""
        counts = {about.num_items, *({about.num_references} - {0})}
        _, lacking = possible(self.extractor, min(counts), self.measures)
        if lacking:
            raise ValueError(f"evaluation.FeatureDistances.measures: {'; '.join(lacking)}. Leave out what so few "
                             "images cannot give")
        return _FeatureTally(self, about, self._file)

    def _extract(
        self, name: str, images_BCHW: Tensor, frozen: Mapping[str, State], context: Context,
    ) -> dict[str, Tensor]:
        found = self.extractor(frozen, images_BCHW, context)
        arrays = {f"{name}/pooled": found.pooled_BC}
        if "sfid" in self.measures and found.spatial_BS is not None:
            arrays[f"{name}/spatial"] = found.spatial_BS
        if "inception_score" in self.measures and found.logits_BY is not None and name == "images":
            arrays[f"{name}/logits"] = found.logits_BY
        return arrays


class _FeatureTally:
    def __init__(self, metric: FeatureDistances, about: About, file: tuple[Statistics, dict[str, str]] | None):
        self._metric, self._about, self._file = metric, about, file
        self._images = FeatureSet(about.num_items, metric.measures, metric.num_kept)
        self._real = _RealImages(about)
        self._real_set = FeatureSet(
            self._real.num_images, [measure for measure in metric.measures if measure != "inception_score"],
            metric.num_kept)

    def add(self, observed: Mapping[str, np.ndarray], valid_B: np.ndarray) -> None:
        """See `Tally`."""
        self._images.add(**_rows(observed, "images", valid_B))
        if rows_B := self._real.add(observed, valid_B):
            self._real_set.add(**_rows(observed, _REAL, rows_B[0]))

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return join({"images": self._images.state(), _REAL: self._real_set.state(),
                     "fingerprint": self._real.fingerprint.state()})

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self._images.restore(part_of(state, "images"))
        self._real_set.restore(part_of(state, _REAL))
        self._real.fingerprint.restore(part_of(state, "fingerprint"))

    def result(self) -> dict[str, Any]:
        """The measures by the extractor's names, and their protocol."""
        names, images = self._metric.extractor.names, self._images.statistics()
        if self._file is not None:
            reference, said = self._file
            protocol = {"reference": f"{self._metric.reference} (sha256 {file_checksum(str(self._metric.reference))})",
                        "reference count": said.get("count") or str(_count(reference) or "not said by the file")}
            protocol["compares"] = f"{self._about.name} with a file of statistics"
            protocol |= {f"reference {name}": said[name] for name in ("image size", "crop", "images") if name in said}
        elif not self._metric.compares:
            reference, protocol = images, {"compares": f"nothing, it is of {self._about.name} alone"}
        else:
            reference, protocol = self._real_set.statistics(), self._real.protocol()
        found = compare(images, reference, self._metric.measures) | self._images.inception_score()
        results = {named(names, measure): value for measure, value in found.items()}
        if not results:  # the Inception score alone, and an image was unreadable
            return {}
        said = {**self._metric.extractor.describe(), **protocol, "rounding": "8 bits"}
        return {**results, f"protocol/{next(iter(results))}": as_text(
            of_result(results, self._about.protocol, self._images.count, said))}


class WaveletDistance:
    """The Frechet distance of Haar wavelet packets, `fwd`: no network, no weights, the same on every machine."""

    needs = ("images_BCHW",)
    frozen: Mapping[str, Frozen] = {}

    def observe(self, items: Items, frozen: Mapping[str, State], context: Context) -> dict[str, Tensor]:
        """See `Metric`."""
        assert items.images_BCHW is not None
        real_BCHW, about_them = real_images(items, type(self).__name__)
        assert real_BCHW is not None
        return {"images": haar_packets(items.images_BCHW), _REAL: haar_packets(real_BCHW), **about_them}

    def tally(self, about: About) -> Tally:
        """See `Metric`."""
        return _WaveletTally(about)


class _WaveletTally:
    def __init__(self, about: About):
        self._about, self._real = about, _RealImages(about)
        self._moments: dict[str, PacketMoments] = {}

    def add(self, observed: Mapping[str, np.ndarray], valid_B: np.ndarray) -> None:
        """See `Tally`."""
        packets_BPD = observed["images"]
        if not self._moments:
            self._moments = {name: PacketMoments(*packets_BPD.shape[1:]) for name in ("images", _REAL)}
        self._moments["images"].add(packets_BPD[valid_B])
        if rows_B := self._real.add(observed, valid_B):
            self._moments[_REAL].add(observed[_REAL][rows_B[0]])

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return join({name: moments.state() for name, moments in self._moments.items()}
                    | {"fingerprint": self._real.fingerprint.state()})

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self._moments = {name: PacketMoments.restored(part) for name in ("images", _REAL)
                         if (part := part_of(state, name))}
        self._real.fingerprint.restore(part_of(state, "fingerprint"))

    def result(self) -> dict[str, Any]:
        """`fwd`, and its protocol."""
        if not self._moments:
            raise ValueError("fwd: there was no image: is the split empty?")
        value = wavelet_distance(*(self._moments[name].gaussians(scale()) for name in ("images", _REAL)))
        said = {"extractor": f"Haar wavelet packets of level {LEVEL}, no network", **self._real.protocol(),
                "rounding": "8 bits"}
        return {"fwd": value, "protocol/fwd": as_text(
            of_result(["fwd"], self._about.protocol, self._moments["images"].count, said))}


class _RealImages:
    """Which images of a pass are the real ones, and what they are."""

    def __init__(self, about: About):
        self._about = about
        self.num_images = about.num_references or about.num_items
        self.fingerprint = Fingerprint()

    def add(self, observed: Mapping[str, np.ndarray], valid_B: np.ndarray) -> tuple[np.ndarray] | None:
        """Notes a batch; which rows of it are real images, None if it has none."""
        if f"{_REAL}/checksums" not in observed:
            return None
        rows_B = observed.get(_REAL_VALID, valid_B).astype(bool)
        self.fingerprint.add(observed[f"{_REAL}/checksums"][rows_B])
        return (rows_B,)

    def protocol(self) -> dict[str, str]:
        """What the images are compared with."""
        kind = "real images of a split" if self._about.num_references else "their own originals"
        return {"compares": f"{self._about.name} with {kind}", "reference": f"images {self.fingerprint.text()}",
                "reference count": str(self.fingerprint.count)}


def real_images(
    items: Items, metric: str, reference: str | None = None,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The real images of a batch, None where a file has them; and their checksums and, if it is their own, validity.

    Raises:
      ValueError: there are no real images and no file, or both.
    """
    if items.originals_BCHW is not None:
        if reference is not None:
            raise ValueError(f"metrics: {metric} has a reference file, {reference}, on a pass whose images have "
                             "originals. A reconstruction FID compares with these; against a generation reference it "
                             "is another measure. Leave the reference out")
        return items.originals_BCHW, {f"{_REAL}/checksums": image_checksums(items.originals_BCHW)}
    if reference is not None:
        return None, {}
    if items.references_BCHW is None or items.references_valid_B is None:
        raise ValueError(f"metrics: {metric} compares with real images, which this pass does not have: set "
                         "evaluation.Samples.reference_split, or give the metric a reference file")
    return items.references_BCHW, {
        f"{_REAL}/checksums": image_checksums(items.references_BCHW), _REAL_VALID: items.references_valid_B}


def _read_reference(
    path: str, extractor: Extractor, measures: Sequence[str],
) -> tuple[Statistics, dict[str, str]]:
    """A file's statistics and protocol; ValueError if they are of another network, or lack what a measure needs."""
    try:
        statistics, said = read_statistics(path)
    except FileNotFoundError as error:
        raise ValueError(f"reference: {error}") from error
    own = extractor.describe()
    for name in ("extractor", "weights"):
        if said.get(name, own[name]) != own[name]:
            raise ValueError(f"reference: {path} has features of {said[name]}, the extractor's are of {own[name]}")
    if not said and extractor.names["fid"] != "fid":
        raise ValueError(f"reference: {path} does not say which network its features are of, as ADM's files do not, "
                         f"which are of FID's Inception; {type(extractor).__name__} needs a file of its own, by "
                         "launch.compare --write_statistics")
    if lacking := [measure for measure in measures
                   if measure != "inception_score" and statistics.needed_for(measure) is None]:
        raise ValueError(f"reference: {path} does not hold what {', '.join(lacking)} need; leave them out of "
                         "evaluation.FeatureDistances.measures, or use launch.compare, which measures them in the "
                         "images that ADM's files hold")
    return statistics, said


def _rows(observed: Mapping[str, np.ndarray], name: str, valid_B: np.ndarray) -> dict[str, np.ndarray]:
    """What `FeatureSet.add` takes, of the rows that count."""
    parts = {"pooled_BC": "pooled", "spatial_BS": "spatial", "logits_BY": "logits"}
    return {argument: observed[f"{name}/{part}"][valid_B] for argument, part in parts.items()
            if f"{name}/{part}" in observed}


def _count(statistics: Statistics) -> int:
    return statistics.pooled.count if statistics.pooled is not None else 0
