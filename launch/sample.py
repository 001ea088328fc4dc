"""Draws pictures from a trained prior.

    python -m launch.sample --workdir=runs/prior --num_images=64 --labels=0,3 --out=samples

Writes one PNG a picture, named <number>_<class>.png, and grid.png. Labels are class numbers or names, used in turn;
without --labels, a prior with classes takes all of them in turn.
"""
from pathlib import Path

import numpy as np
from absl import flags as absl_flags
from absl import logging
from PIL import Image

from vqim.evaluation.prior import decode_tokens
from vqim.prior.sampler import Sampler
from vqim.prior.task import PriorTask
from vqim.registry.config import ConfigError
from vqim.state.leaf import select
from vqim.training.state import restore_arrays
from vqim.training.summaries import image_grid

from . import flags, session

NUM_IMAGES = absl_flags.DEFINE_integer("num_images", 64, "How many pictures to draw.", lower_bound=1)
LABELS = absl_flags.DEFINE_list("labels", [], "Class numbers or names, used in turn.")
OUT = absl_flags.DEFINE_string("out", None, "Folder for the pictures; <workdir>/samples unless given.")
BATCH_SIZE = absl_flags.DEFINE_integer("batch_size", 64, "Pictures drawn at a time.", lower_bound=1)
SEED = absl_flags.DEFINE_integer("seed", 0, "The same seed draws the same pictures.", lower_bound=0)
TEMPERATURE = absl_flags.DEFINE_float("temperature", 1.0, "Of the distribution; 0 takes the likeliest.", lower_bound=0)
TOP_K = absl_flags.DEFINE_integer("top_k", None, "Only the k likeliest codes; all unless given.", lower_bound=1)
TOP_P = absl_flags.DEFINE_float("top_p", None, "Only the nucleus of this probability; all unless given.",
                                lower_bound=0.0, upper_bound=1.0)


def main() -> None:
    """Draws and writes the pictures."""
    workdir = session.run_directory()
    config = session.load_run_config(workdir)
    runtime = session.make_runtime(config, flags.RUNTIME.value)
    experiment = config.call("train")
    task = experiment.task
    if not isinstance(task, PriorTask):
        raise ConfigError(f"--workdir must be the run of a prior, {workdir} trains a {type(task).__name__}")
    config.refuse_unused(except_for=session.RUNTIME_BINDINGS)
    labels_B = _labels(task.num_classes, tuple(experiment.data.class_names))
    checkpoint = session.open_checkpoint(workdir)
    # The optimizer's slots are not needed.
    spec = {name: leaf for name, leaf in task.init_spec().items() if name.startswith(("params/", "frozen/"))}
    arrays = restore_arrays(spec, experiment.seed, runtime, checkpoint)
    try:
        sampler = Sampler(task.prior, runtime, BATCH_SIZE.value, temperature=TEMPERATURE.value, top_k=TOP_K.value,
                          top_p=TOP_P.value, dtype=task.dtype)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    out = Path(OUT.value or Path(workdir) / "samples")
    out.mkdir(parents=True, exist_ok=True)
    names = experiment.data.class_names
    drawn: list[np.ndarray] = []
    for first in range(0, len(labels_B), BATCH_SIZE.value):
        part_B = labels_B[first:first + BATCH_SIZE.value]
        padded_B = np.pad(part_B, (0, BATCH_SIZE.value - len(part_B)), constant_values=-1)
        seed = int(np.random.SeedSequence([SEED.value, first]).generate_state(1)[0]) >> 1
        tokens_BNK = sampler(select(arrays, "params/prior/"), padded_B, seed)
        images = decode_tokens(task, arrays, runtime, tokens_BNK)[:len(part_B)]
        for number, (image, label) in enumerate(zip(images, part_B, strict=True), start=first):
            word = names[label].replace(" ", "_").replace("/", "_") if label >= 0 else "any"
            Image.fromarray(image).save(out / f"{number:05d}_{word}.png")
        drawn.extend(images)
        logging.info("%d of %d pictures", len(drawn), len(labels_B))
    Image.fromarray(image_grid(np.stack(drawn))).save(out / "grid.png")
    print(f"{len(drawn)} pictures in {out}")


def _labels(num_classes: int, names: tuple[str, ...]) -> np.ndarray:
    """The class of each picture to draw, int32; -1 for a prior without classes."""
    if LABELS.value and not num_classes:
        raise ConfigError(f"--labels needs a prior that was trained with classes, got {','.join(LABELS.value)}")
    wanted = []
    for word in LABELS.value or [str(label) for label in range(num_classes)] or ["-1"]:
        if word in names:
            wanted.append(names.index(word))
        elif word == "-1" or word.isdigit() and int(word) < num_classes:
            wanted.append(int(word))
        else:
            raise ConfigError(f"--labels must be class numbers below {num_classes} or names among {list(names)}; "
                              f"got {word!r}")
    return np.resize(np.array(wanted, np.int32), NUM_IMAGES.value)


def run() -> None:
    """Entry point of the console script."""
    flags.run(main)


if __name__ == "__main__":
    run()
