"""Draws images from a trained prior.

    python -m launch.sample --workdir=runs/prior --num_images=64 --labels=0,3 --out=samples

Writes one PNG for each image, named <number>_<class>.png, and grid.png. Labels are class numbers or names, used in
turn; without --labels, a prior with classes uses all of them in turn.

A classifier can reject most of the drawn images (ViT-VQGAN, Table 6). Here it rejects nine of ten, and the best tenth
is written:

    python -m launch.sample ... --gin_file=gin/exp/rejection/classifier_model.gin \
      --gin_file=gin/run/reject_samples.gin --gin_bindings='sample.acceptance_rate = 0.1'
"""
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags as absl_flags
from absl import logging
from PIL import Image

from vqim.checkpoint.errors import NoCheckpointError
from vqim.evaluation.passes import bind_sampler
from vqim.evaluation.rejection import Candidates, CandidateSampler, accepted, num_needed
from vqim.registry.config import ConfigError
from vqim.trained import Trained
from vqim.training.summaries import image_grid

from . import flags, session

NUM_IMAGES = absl_flags.DEFINE_integer("num_images", 64, "How many images to draw.", lower_bound=1)
LABELS = absl_flags.DEFINE_list("labels", [], "Class numbers or names, used in turn.")
OUT = absl_flags.DEFINE_string("out", None, "Folder for the images; <workdir>/samples unless given.")
BATCH_SIZE = absl_flags.DEFINE_integer("batch_size", 64, "Images drawn at a time.", lower_bound=1)
SEED = absl_flags.DEFINE_integer("seed", 0, "The same seed draws the same images.", lower_bound=0)
TEMPERATURE = absl_flags.DEFINE_float("temperature", None, "Divides the logits; 0 takes the likeliest.", lower_bound=0)
TOP_K = absl_flags.DEFINE_integer("top_k", None, "Only the k likeliest codes.", lower_bound=1)
TOP_P = absl_flags.DEFINE_float(
    "top_p", None, "Only the nucleus of this probability.", lower_bound=0.0, upper_bound=1.0)
GUIDANCE = absl_flags.DEFINE_float("guidance", None, "Scale of classifier-free guidance.", lower_bound=0.0)


def main() -> None:
    """Draws and writes the images."""
    config, run = session.open_run()
    try:
        prior = run.prior
    except ValueError as error:
        raise ConfigError(f"--workdir: {error}") from error
    rejection = config.call("sample")
    config.refuse_unused(except_for=session.READING_BINDINGS)
    rate, names = rejection.acceptance_rate, run.facts.class_names
    labels_N = _labels(run)
    if rate < 1 and labels_N.min() < 0:
        raise ConfigError(f"sample.acceptance_rate {rate} needs a class for every image, which the classifier judges "
                          "by; got images without one: give classes by --labels, or set sample.acceptance_rate = 1.0")
    given = {"temperature": TEMPERATURE.value, "top_k": TOP_K.value, "top_p": TOP_P.value, "guidance": GUIDANCE.value}
    try:
        sampler = prior.sampler.with_settings(**{name: value for name, value in given.items() if value is not None})
        draw = bind_sampler(run.experiment.task, run.runtime, BATCH_SIZE.value, sampler)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    try:
        candidates = CandidateSampler(run.experiment.task, run.runtime, draw, BATCH_SIZE.value,
                                      rejection.classifier if rate < 1 else None)
    except (ValueError, NoCheckpointError) as error:
        raise ConfigError(f"sample.classifier: {error}") from error
    out = Path(OUT.value or Path(session.run_directory()) / "samples")
    out.mkdir(parents=True, exist_ok=True)
    places = {label: iter(np.flatnonzero(labels_N == label).tolist()) for label in set(labels_N.tolist())}
    drawn: dict[int, np.ndarray] = {}
    for batch in _draw(candidates, run, labels_N, rate):
        for image, label in zip(batch.images_BHWC, batch.labels_B.tolist(), strict=True):
            number = next(places[label])
            word = names[label].replace(" ", "_").replace("/", "_") if label >= 0 else "any"
            if run.runtime.process_index == 0:  # every host has all images
                Image.fromarray(image).save(out / f"{number:05d}_{word}.png")
            drawn[number] = image
        logging.info("%d of %d images", len(drawn), len(labels_N))
    if run.runtime.process_index == 0:
        grid = image_grid(np.stack([drawn[number] for number in range(len(labels_N))]))
        Image.fromarray(grid).save(out / "grid.png")
        print(f"{len(drawn)} images in {out}")


def _draw(candidates: CandidateSampler, run: Trained, labels_N: np.ndarray, rate: float) -> Iterator[Candidates]:
    """An image for each label, in any order. With a rate below 1, more candidates are drawn and the best accepted."""
    if rate == 1:
        return candidates(run.arrays, labels_N, SEED.value)
    labels, counts = np.unique(labels_N, return_counts=True)
    needed_N = np.repeat(labels, [num_needed(count, rate) for count in counts])
    return accepted(candidates(run.arrays, needed_N, SEED.value), rate)


def _labels(run: Trained) -> np.ndarray:
    """The class of each image to draw, int32; -1 for a prior without classes."""
    num_classes = run.prior.num_classes
    if LABELS.value and not num_classes:
        raise ConfigError(f"--labels needs a prior that was trained with classes, got {','.join(LABELS.value)}")
    if not LABELS.value:
        return np.resize(np.arange(num_classes) if num_classes else np.array([-1]), NUM_IMAGES.value).astype(np.int32)
    try:
        return np.resize(run.labels(LABELS.value), NUM_IMAGES.value)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error


def run() -> None:
    """Entry point of the console script."""
    flags.run(main)


if __name__ == "__main__":
    run()
