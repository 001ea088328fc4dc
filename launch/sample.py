"""Draws images from a trained prior.

    python -m launch.sample --workdir=runs/prior --num_images=64 --labels=0,3 --out=samples

Writes one PNG for each image, named <number>_<class>.png, and grid.png. Labels are class numbers or names, used in
turn; without --labels, a prior with classes uses all of them in turn.

With an image and a mask, it draws a part of that image anew: inpainting, outpainting, another class in a box. The mask
is an image of the same size, white (128 or more) where pixels are to be drawn, or a box of the run's pixels, given as
left, top, right and bottom:

    python -m launch.sample --workdir=runs/prior --image=photo.png --mask=mask.png --labels=Flags --num_images=8
    python -m launch.sample --workdir=runs/prior --image=photo.png --mask=8,8,24,24

A classifier can reject most of the drawn images (ViT-VQGAN, Table 6). Here it rejects nine of ten, and the best tenth
is written:

    python -m launch.sample ... --gin_file=gin/exp/rejection/classifier_model.gin \
      --gin_file=gin/run/reject_samples.gin --gin_bindings='sample.acceptance_rate = 0.1'
"""
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags as absl_flags
from absl import logging
from PIL import Image, ImageOps

from vqim.checkpoint.errors import NoCheckpointError
from vqim.evaluation.rejection import accept, num_needed
from vqim.prior.editing import check_fillable, match, token_mask
from vqim.registry.config import ConfigError
from vqim.trained import Trained
from vqim.training.summaries import image_grid

from . import flags, session

NUM_IMAGES = absl_flags.DEFINE_integer("num_images", 64, "How many images to draw.", lower_bound=1)
LABELS = absl_flags.DEFINE_list("labels", [], "Class numbers or names, used in turn.")
OUT = absl_flags.DEFINE_string("out", None, "Folder for the images; <workdir>/samples unless given.")
OVERWRITE = absl_flags.DEFINE_bool("overwrite", False, "Remove older samples from the folder.")
BATCH_SIZE = absl_flags.DEFINE_integer("batch_size", 64, "Images drawn at a time.", lower_bound=1)
SEED = absl_flags.DEFINE_integer("seed", 0, "The same seed draws the same images.", lower_bound=0)
TEMPERATURE = absl_flags.DEFINE_float("temperature", None, "Divides the logits; 0 takes the likeliest.", lower_bound=0)
TOP_K = absl_flags.DEFINE_integer("top_k", None, "Only the k likeliest codes.", lower_bound=1)
TOP_P = absl_flags.DEFINE_float(
    "top_p", None, "Only the nucleus of this probability.", lower_bound=0.0, upper_bound=1.0)
GUIDANCE = absl_flags.DEFINE_float("guidance", None, "Scale of classifier-free guidance.", lower_bound=0.0)

IMAGE = absl_flags.DEFINE_string("image", None, "An image of which the part under --mask is drawn anew.")
MASK = absl_flags.DEFINE_string("mask", None, "An image, white where to draw, or a box: left,top,right,bottom.")
PASTE = absl_flags.DEFINE_bool(
    "paste", True, "Unmasked pixels are the image's own; --nopaste leaves what the decoder makes of its tokens.")


def main() -> None:
    """Draws and writes the images."""
    config, run = session.open_run(batch_size=BATCH_SIZE.value)
    try:
        _ = run.prior
    except ValueError as error:
        raise ConfigError(f"--workdir: {error}") from error
    rejection = config.call("sample")
    config.refuse_unused(except_for=session.READING_BINDINGS)
    rate, names = rejection.acceptance_rate, run.facts.class_names
    labels_N = _labels(run)
    if rate < 1 and labels_N.min() < 0:
        raise ConfigError(f"sample.acceptance_rate {rate} needs a class for every image, which the classifier judges "
                          "by; got images without one: give classes by --labels, or set sample.acceptance_rate = 1.0")
    edit = read_edit(run)
    try:
        run.draw(**settings())
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    try:
        judge = run.judge(rejection.classifier) if rate < 1 else None
    except (ValueError, NoCheckpointError) as error:
        raise ConfigError(f"sample.classifier: {error}") from error
    out = Path(os.path.expanduser(OUT.value)) if OUT.value else Path(session.run_directory()) / "samples"
    _make_empty(out)
    # Candidates of a class follow one another, so that it is complete before the next one is drawn.
    classes, counts = np.unique(labels_N, return_counts=True)
    candidates_M = labels_N if judge is None else np.repeat(classes, [num_needed(count, rate) for count in counts])
    places = {label: iter(np.flatnonzero(labels_N == label).tolist()) for label in set(labels_N.tolist())}

    def draw(labels: list[int], first: int) -> np.ndarray:
        if edit is None:
            return run.sample(labels, seed=SEED.value, first=first, **settings())
        return run.edit(*edit, labels, seed=SEED.value, first=first, paste=PASTE.value, **settings())

    drawn: dict[int, np.ndarray] = {}
    for first, labels_B in groups(candidates_M, BATCH_SIZE.value, split_classes=judge is None):
        images_BHWC = draw(labels_B.tolist(), first)
        if judge is not None:
            kept_B = accept(judge(images_BHWC, labels_B)[0], labels_B, rate)
            images_BHWC, labels_B = images_BHWC[kept_B], labels_B[kept_B]
        for image, label in zip(images_BHWC, labels_B.tolist(), strict=True):
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
        if edit is not None:
            Image.fromarray(edit[0]).save(out / "original.png")
            print("Pixels that are not masked are the image's own." if PASTE.value else
                  "Pixels that are not masked are what the decoder makes of the image's own tokens.")


def _make_empty(out: Path) -> None:
    """Makes the folder, without older samples in it."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out must be a folder; {out} is a file")
    older = [path for path in out.glob("*.png") if re.fullmatch(r"(\d{5}_.*|grid|original)\.png", path.name)]
    if older and not OVERWRITE.value:
        raise ConfigError(f"--out must hold no older samples; {out} has {len(older)}. --overwrite removes them")
    for path in older:
        path.unlink()
    out.mkdir(parents=True, exist_ok=True)


def read_edit(run: Trained) -> tuple[np.ndarray, np.ndarray] | None:
    """The image to edit, uint8 [H, W, 3] as the run's evaluation sees it, and its mask, bools [H, W]; None without.

    Raises:
      ConfigError: a flag is missing, a file is no image, the two have different sizes, or the mask cannot be filled.
    """
    if IMAGE.value is None and MASK.value is None:
        return None
    if IMAGE.value is None or MASK.value is None:
        raise ConfigError("--image and --mask belong together: which image, and which part of it is to be drawn anew")
    size = run.tokenizer.image_size
    image = open_image("image", IMAGE.value)
    try:
        image_HWC = run.prepare(image)
        if re.fullmatch(r"[\d, ]+", MASK.value):
            mask_HW = box_mask(MASK.value, size)
        else:
            mask = open_image("mask", MASK.value)
            if mask.size != image.size:
                raise ValueError(f"mask must have the image's size, {image.size[0]}x{image.size[1]} pixels, got "
                                 f"{mask.size[0]}x{mask.size[1]}")
            mask_HW = run.prepare(mask.convert("L"))[..., 0] >= 128
        _, mask_1HW = match(image_HWC[None], mask_HW, 1)
        check_fillable(token_mask(mask_1HW, run.tokenizer.grid), run.prior.sampler)
    except ValueError as error:
        raise ConfigError(f"--image, --mask: {error}") from error
    return image_HWC, mask_HW


def open_image(flag: str, path: str) -> Image.Image:
    """An image file, upright; ConfigError where there is none."""
    try:
        return ImageOps.exif_transpose(Image.open(path))
    except (OSError, SyntaxError) as error:
        raise ConfigError(f"--{flag} must be an image file, got {path}: {error}") from error


def box_mask(text: str, size: int) -> np.ndarray:
    """Bools [size, size], True in a box "left,top,right,bottom" of pixels; right and bottom lie outside of it."""
    numbers = [int(word) for word in text.replace(" ", "").split(",") if word]
    if len(numbers) != 4 or not (numbers[0] < numbers[2] <= size and numbers[1] < numbers[3] <= size):
        raise ValueError(f"mask must be an image file, or a box left,top,right,bottom within {size}x{size} pixels, "
                         f"got {text}")
    left, top, right, bottom = numbers
    mask_HW = np.zeros((size, size), bool)
    mask_HW[top:bottom, left:right] = True
    return mask_HW


def settings() -> dict[str, Any]:
    """The sampler's settings that were given on the command line."""
    given = {"temperature": TEMPERATURE.value, "top_k": TOP_K.value, "top_p": TOP_P.value, "guidance": GUIDANCE.value}
    return {name: value for name, value in given.items() if value is not None}


def groups(labels_N: np.ndarray, size: int, split_classes: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Parts of at least `size` labels, except the last, each with the number of its first one.

    Without `split_classes`, labels are sorted, and a class is in one part.
    """
    start = 0
    while start < len(labels_N):
        end = min(start + size, len(labels_N))
        if not split_classes:
            end = int(np.searchsorted(labels_N, labels_N[end - 1], side="right"))
        yield start, labels_N[start:end]
        start = end


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
