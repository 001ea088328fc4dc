"""What a FID costs here, in torch-fidelity and in torchmetrics, on the same images in one process; no test.

    pip install --no-deps torch-fidelity torchmetrics lightning-utilities    # beside vqim and torchvision
    python -m tests.peers.fid_times images 2000     # from 8-bit images to the distance, 1,000 images against 1,000
    python -m tests.peers.fid_times features 2      # accumulated and compared: 10,000 x 2,048 given features, twice
    python -m tests.evaluation.peers costs          # memory of the latter, each library in a process of its own

Seconds are those of one thread of a core (`time.process_time`): what other programs do on the machine is not in them.
All have one network of random weights: FID's own cannot be had without a download, and cost the same. Libraries take
turns batch by batch, the first of a turn changing, so that whatever else the machine does, it does to all of them.
"""
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch

from tests.evaluation.peers import (
    emoji,
    features,
    gaussian,
    torch_fidelity_fid,
    torchmetrics_fid,
    write_random_inception,
)
from vqim.contracts.context import Context
from vqim.evaluation.extractors import InceptionFeatures
from vqim.evaluation.feature_sets import FeatureSet, compare
from vqim.evaluation.frechet import frechet_distance
from vqim.frozen.inception import Inception
from vqim.runtime.torch import TorchRuntime
from vqim.training.state import start

BATCH = 16


class Ours:
    """The parts of `evaluation.FeatureDistances`, whose extractor also gives logits and spatial features."""

    def __init__(self, path: str, count: int):
        self._network = Inception(64, path, hashlib.sha256(open(path, "rb").read()).hexdigest())
        self._runtime = TorchRuntime()
        self._extractor = InceptionFeatures(self._network)
        (name,) = self._extractor.frozen
        self._arrays = {name: start(self._network.init_spec(), 0, self._runtime).arrays}
        self._sets = [FeatureSet(count, ("fid",)) for _ in range(2)]

    def add(self, images: torch.Tensor, which: int) -> None:
        found = self._extractor(self._arrays, images.float() / 255, Context(self._runtime.kernels))
        self._sets[which].add(found.pooled_BC.numpy())

    def result(self) -> float:
        return compare(*(one.statistics() for one in self._sets), ("fid",))["fid"]


class TorchFidelity:
    """Its extractor and its Frechet distance, without its reading of files."""

    def __init__(self, path: str, count: int):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        self._extractor = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=path).eval()
        self._rows: tuple[list[torch.Tensor], ...] = ([], [])

    def add(self, images: torch.Tensor, which: int) -> None:
        self._rows[which].append(self._extractor(images)[0])

    def result(self) -> float:
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
        statistics = [fid_features_to_statistics(torch.cat(rows)) for rows in self._rows]
        return float(fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"])


class TorchMetrics:
    """Its metric as users call it; its resize is antialiased, so that its value is another."""

    def __init__(self, path: str, count: int):
        from torchmetrics.image.fid import FrechetInceptionDistance
        self._metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=path)

    def add(self, images: torch.Tensor, which: int) -> None:
        self._metric.update(images, real=which == 1)

    def result(self) -> float:
        return float(self._metric.compute())


def timed(seconds: dict[str, list[float]], name: str, work: Callable[..., object], *arguments: object) -> object:
    """What `work` gives; its seconds of the core are noted."""
    begin = time.process_time()
    found = work(*arguments)
    seconds.setdefault(name, []).append(time.process_time() - begin)
    return found


def on_images(count: int, projected: int = 2000) -> None:
    """Time of two sets of `count` / 2 images each, and what follows for `projected` images."""
    half = count // 2
    images = (torch.cat([emoji("train", min(2 * half, 1500), 1)] * 2)[:2 * half] * 255).round().to(torch.uint8)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = str(write_random_inception(folder))
        libraries = {"vqim": Ours(path, half), "torch-fidelity": TorchFidelity(path, half),
                     "torchmetrics": TorchMetrics(path, half)}
        adding: dict[str, list[float]] = {}
        comparing: dict[str, list[float]] = {}
        names = list(libraries)
        starts = [(which, first) for which in range(2) for first in range(0, half, BATCH)]
        for number, (which, first) in enumerate(starts):
            batch = images[half * which + first:half * which + min(first + BATCH, half)]
            for name in names[number % 3:] + names[:number % 3]:
                timed(adding, name, libraries[name].add, batch, which)
        values = {name: timed(comparing, name, one.result) for name, one in libraries.items()}
    print(f"| {count} images | FID | extraction | median batch of {BATCH} | Frechet | both | ours over theirs | "
          f"for {projected} images |\n| {'--- | ' * 8}")
    totals = {name: sum(adding[name]) + sum(comparing[name]) for name in names}
    of_many = {name: projected / BATCH * float(np.median(adding[name])) + sum(comparing[name]) for name in names}
    for name in names:
        print(f"| {name} | {values[name]:.5g} | {sum(adding[name]):.1f} s | {np.median(adding[name]):.3f} s | "
              f"{sum(comparing[name]):.1f} s | {totals[name]:.1f} s | {totals['vqim'] / totals[name]:.3f} | "
              f"{of_many[name]:.0f} s, {of_many['vqim'] / of_many[name]:.3f} |")


def on_features(rounds: int) -> None:
    """Time of 10,000 x 2,048 features of two sets, accumulated in batches of 64 and compared."""
    a, b = features(10000, 2048, 0, 0.3), features(10000, 2048, 1, 0.2)
    works = {"vqim": lambda: frechet_distance(gaussian(a), gaussian(b)),
             "torch-fidelity": lambda: torch_fidelity_fid(a, b), "torchmetrics": lambda: torchmetrics_fid(a, b)}
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        values = {name: timed(seconds, name, work) for name, work in works.items()}
    for name, value in values.items():
        best = min(seconds[name])
        print(f"| {name} | {value:.6f} | {best:.1f} s | ours over theirs {min(seconds['vqim']) / best:.3f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"images": on_images, "features": on_features}[sys.argv[1]](int(sys.argv[2]))
