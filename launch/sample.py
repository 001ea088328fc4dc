"""Draws images from a trained prior.

    python -m launch.sample --workdir=runs/prior --num_images=64 --labels=0,3 --out=samples

Writes one PNG for each image, named <number>_<class>.png, and the first of them as grid.png; with --out=samples.npz,
one file as ADM's evaluator takes samples. Labels are class numbers or names, used in turn; without --labels, a prior
with classes uses all of them in turn. What was cut off goes on with --first, the number of the next image.

With an image and a mask, it draws a part of that image again: inpainting, outpainting, another class in a box. The mask
is an image of the same size, white (128 or more) where pixels are to be drawn, or a box of the run's pixels, given as
left, top, right and bottom:

    python -m launch.sample --workdir=runs/prior --image=photo.png --mask=mask.png --labels=Flags --num_images=8
    python -m launch.sample --workdir=runs/prior --image=photo.png --mask=8,8,24,24

A classifier can reject most of the drawn images (ViT-VQGAN, Table 6). Here it rejects nine of ten, and the best tenth
is written:

    python -m launch.sample ... --gin_file=gin/exp/rejection/classifier_model.gin \
      --gin_file=gin/run/reject_samples.gin --gin_bindings='sample.acceptance_rate = 0.1'

Another run's decoder can show the tokens, such as that of SeQ-GAN's second phase:

    python -m launch.sample ... --tokenizer_run=runs/second_phase

It has to make the same tokens. compare.png then has each image by the prior's own decoder, and below it by that one.
"""
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags as absl_flags
from absl import logging
from PIL import Image

from vqim.checkpoint.errors import NoCheckpointError
from vqim.checkpoint.files import is_url
from vqim.evaluation.rejection import accept, groups, num_needed
from vqim.registry.config import ConfigError
from vqim.trained import Trained, load, step_of_another

from . import editing, flags, session
from .sample_files import Output, SampleFile, SampleFolder

NUM_IMAGES = absl_flags.DEFINE_integer("num_images", 64, "How many images to draw.", lower_bound=1)
FIRST = absl_flags.DEFINE_integer(
    "first", 0, "The number of the first image, to go on where an earlier call ended.", lower_bound=0)
LABELS = absl_flags.DEFINE_list("labels", [], "Class numbers or names, used in turn.")
OUT = absl_flags.DEFINE_string(
    "out", None, "Folder for the images, <workdir>/samples unless given; or one file for all, samples.npz.")
OVERWRITE = absl_flags.DEFINE_bool("overwrite", False, "Remove older samples, from --first on, or the older file.")
BATCH_SIZE = absl_flags.DEFINE_integer("batch_size", 64, "Images drawn at a time.", lower_bound=1)
SEED = absl_flags.DEFINE_integer(
    "seed", 0, "The same seed draws the same images.", lower_bound=0, upper_bound=2**31 - 1)
TEMPERATURE = absl_flags.DEFINE_float("temperature", None, "Divides the logits; 0 takes the likeliest.", lower_bound=0)
TOP_K = absl_flags.DEFINE_integer("top_k", None, "Only the k likeliest codes.", lower_bound=1)
TOP_P = absl_flags.DEFINE_float(
    "top_p", None, "Only the nucleus of this probability.", lower_bound=0.0, upper_bound=1.0)
GUIDANCE = absl_flags.DEFINE_float("guidance", None, "Scale of classifier-free guidance.", lower_bound=0.0)
TOKENIZER_RUN = absl_flags.DEFINE_string(
    "tokenizer_run", None, "A run whose decoder shows the tokens; it has to make the same tokens as the prior's own.")


def main() -> None:
    """Draws and writes the images."""
    if is_url(flags.workdir() or "") and not OUT.value:
        raise ConfigError(f"--out must name a folder for the images, since --workdir is none; got {flags.workdir()}")
    config, run = session.open_run(batch_size=BATCH_SIZE.value)
    try:
        _ = run.prior
    except ValueError as error:
        raise ConfigError(f"--workdir: {error}") from error
    rejection = config.call("sample")
    config.refuse_unused(except_for=session.READING_BINDINGS)
    rate = rejection.acceptance_rate
    labels_N = _labels(run)
    if rate < 1 and labels_N.min() < 0:
        raise ConfigError(f"sample.acceptance_rate {rate} needs a class for every image, which the classifier judges "
                          "by; got images without one: give classes by --labels, or set sample.acceptance_rate = 1.0")
    try:
        run.draw(**settings())
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    own_decoder = run
    if TOKENIZER_RUN.value:
        kind: Any = flags.RUNTIME.value
        run = run.with_tokenizer(load(
            TOKENIZER_RUN.value, step=step_of_another(flags.restore()), runtime=kind, batch_size=BATCH_SIZE.value))
    edit = editing.read_edit(run)
    try:
        judge = run.judge(rejection.classifier) if rate < 1 else None
    except (ValueError, NoCheckpointError) as error:
        raise ConfigError(f"sample.classifier: {error}") from error
    if rate < 1 and FIRST.value:
        raise ConfigError("--first is for samples that are all written: which of a class a classifier accepts, it "
                          f"decides of all of them; got --first={FIRST.value} and sample.acceptance_rate = {rate}")
    out = _output(run, labels_N, is_edit=edit is not None)
    # Candidates of a class follow one another, so that it is complete before the next one is drawn.
    classes, counts = np.unique(labels_N, return_counts=True)
    candidates_M = labels_N if judge is None else np.repeat(classes, [num_needed(count, rate) for count in counts])
    places = {label: iter(np.flatnonzero(labels_N == label).tolist()) for label in set(labels_N.tolist())}

    def draw(labels: list[int], first: int) -> tuple[np.ndarray, np.ndarray | None]:
        if edit is not None:
            return edit.draw(run, labels, seed=SEED.value, first=first, **settings()), None
        tokens_BPK = run.sample_tokens(labels, seed=SEED.value, first=first, **settings())
        return run.images(tokens_BPK), tokens_BPK

    num_drawn = 0
    for first, labels_B in groups(candidates_M, BATCH_SIZE.value, split_classes=judge is None):
        images_BHWC, tokens_BPK = draw(labels_B.tolist(), FIRST.value + first)
        if judge is not None:
            kept_B = accept(judge(images_BHWC, labels_B)[0], labels_B, rate)
            images_BHWC, labels_B = images_BHWC[kept_B], labels_B[kept_B]
            tokens_BPK = None if tokens_BPK is None else tokens_BPK[kept_B]
        numbers = [FIRST.value + next(places[label]) for label in labels_B.tolist()]
        pairs = run is not own_decoder and tokens_BPK is not None and any(map(out.shows_pair, numbers))
        others = own_decoder.images(tokens_BPK) if pairs else [None] * len(labels_B)
        for number, image, label, other in zip(numbers, images_BHWC, labels_B.tolist(), others, strict=True):
            out.add(number, image, label, other)
        num_drawn += len(labels_B)
        logging.info("%d of %d images", num_drawn, len(labels_N))
    out.finish()
    if run.runtime.process_index == 0:
        print(f"{num_drawn} images in {out.path}")
        if edit is not None:
            Image.fromarray(edit.image_HWC).save(out.path / "original.png")
            print(edit.note())


def _output(run: Trained, labels_N: np.ndarray, is_edit: bool) -> Output:
    """Where the images go; ConfigError if they cannot go there."""
    writes = run.runtime.process_index == 0  # every process has all images
    path = Path(flags.path(OUT) or f"{session.run_directory()}/samples")
    if path.suffix != ".npz":
        return SampleFolder(path, FIRST.value, run.facts.class_names, OVERWRITE.value, writes)
    if is_edit:
        raise ConfigError(f"--out must be a folder with --image, whose original is put beside the others; got {path}")
    return SampleFile(path, FIRST.value, labels_N, run.tokenizer.image_size, OVERWRITE.value, writes)


def settings() -> dict[str, Any]:
    """The sampler's settings that were given on the command line."""
    given = {"temperature": TEMPERATURE.value, "top_k": TOP_K.value, "top_p": TOP_P.value, "guidance": GUIDANCE.value}
    return {name: value for name, value in given.items() if value is not None}


def _labels(run: Trained) -> np.ndarray:
    """The class of each image to draw, int32; -1 for a prior without classes."""
    num_classes = run.prior.num_classes
    if LABELS.value and not num_classes:
        raise ConfigError(f"--labels needs a prior that was trained with classes, got {','.join(LABELS.value)}")
    last = FIRST.value + NUM_IMAGES.value
    if not LABELS.value:
        every = np.arange(num_classes) if num_classes else np.array([-1])
        return np.resize(every, last)[FIRST.value:].astype(np.int32)
    try:
        return np.resize(run.labels(LABELS.value), last)[FIRST.value:]
    except ValueError as error:
        raise ConfigError(f"--{error}") from error


def run() -> None:
    """Entry point of the console script."""
    flags.run(main)


if __name__ == "__main__":
    run()
