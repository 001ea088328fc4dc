"""Shows what priors expect of real images, token by token, given the true tokens before each: SeQ-GAN section 3.2.

    python -m launch.predict --workdir=runs/alpha_0/prior --beside=runs/alpha_1/prior --out=teacher_forced.png

One column an image, the same for all runs. Its rows: the original; then for each run what its tokenizer makes of it,
and below that the tokens that its prior expects, decoded. The first is as good as samples can look, the second as close
as the prior can follow. Printed are figures of the whole split. --gin_file and --gin_bindings override the
configuration of each run.
"""
import os
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags as absl_flags
from einops import rearrange
from PIL import Image, ImageDraw

from vqim.contracts.prior import Expecting
from vqim.evaluation.image_metrics import Distances, ShownImages, split_shown
from vqim.evaluation.passes import Predictions, Reconstructions, evaluate
from vqim.evaluation.token_metrics import Likelihood
from vqim.registry.config import ConfigError
from vqim.registry.run_config import read_config
from vqim.registry.runtimes import make_runtime
from vqim.trained import open_run

from . import flags, session

BESIDE = absl_flags.DEFINE_multi_string(
    "beside", [], "Another prior's run, to be shown below; may be given several times.")
NUM_IMAGES = absl_flags.DEFINE_integer("num_images", 8, "Columns: images evenly spaced over the split.",
                                       lower_bound=1, upper_bound=8)
BATCH_SIZE = absl_flags.DEFINE_integer("batch_size", 64, "Images at a time.", lower_bound=1)
SPLIT = absl_flags.DEFINE_enum("split", "validation", ["validation", "train"], "Whose images.")
OUT = absl_flags.DEFINE_string("out", "teacher_forced.png", "The picture.")

_SMALLEST = 64  # pixels on a side of a shown image
_MARGIN, _GAP = 200, 2


def main() -> None:
    """Measures every run, and draws the picture."""
    out, paths = _out(), [session.run_directory(), *flags.paths(BESIDE)]
    rows: dict[str, np.ndarray] = {}
    for path, shown_path in zip(paths, session.short_names(paths), strict=True):
        originals_BHWC, own_rows, figures = _measure(path)
        if rows and not np.array_equal(rows["original"], originals_BHWC):
            raise ConfigError(f"{path} was trained on other images than {paths[0]}, or on another crop or size of "
                              "them; runs beside each other have to show the same ones")
        rows |= {"original": originals_BHWC, **{f"{shown_path}\n{name}": shown for name, shown in own_rows.items()}}
        print(path)
        for name, value in figures.items():
            print(f"  {name}: {value:.6g}")
    _draw(rows).save(out)
    print(f"{len(rows)} rows of {len(originals_BHWC)} images in {out}")


def _out() -> Path:
    """--out; ConfigError where no picture can be written, before any work."""
    out = Path(os.path.expanduser(OUT.value))
    if out.suffix.lower() not in Image.registered_extensions() or out.is_dir():
        raise ConfigError(f"--out must be a picture's file, such as teacher_forced.png; got {OUT.value}")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out: there is no folder for {out}; make it first")
    return out


def _measure(path: str) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, float]]:
    """The originals, uint8 [B, H, W, C], the rows below them by name, and figures of the split."""
    config = read_config(path, flags.gin_files(), flags.GIN_BINDINGS.value, flags.GIN_SEARCH_PATH.value)
    run = open_run(config, path, make_runtime(config, flags.RUNTIME.value), step=flags.restore(), needs_data=True)
    try:
        expects = isinstance(run.prior.prior, Expecting)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not expects:
        raise ConfigError(f"{path}: {type(run.prior.prior).__name__} does not say which tokens it expects")
    experiment = run.experiment

    def measured(view: type[Reconstructions] | type[Predictions], *metrics: Any) -> dict[str, Any]:
        all_metrics: list[Any] = [Distances(), ShownImages(NUM_IMAGES.value), *metrics]
        view_of_split = view(all_metrics, BATCH_SIZE.value, split=SPLIT.value)
        return evaluate(view_of_split.begin(experiment.task, experiment.data, run.arrays, run.runtime))

    reconstructed, predicted = measured(Reconstructions), measured(Predictions, Likelihood())
    original, reconstruction = split_shown(reconstructed["images/reconstructions"])
    _, prediction = split_shown(predicted["images/predictions"])
    figures = {"reconstruction, psnr to the original": reconstructed["evaluation/psnr"],
               "teacher-forced, psnr to the reconstruction": predicted["evaluation/psnr"]}
    for name in ("token_accuracy", "bits_per_token"):
        if f"evaluation/{name}" in predicted:
            figures[name] = predicted[f"evaluation/{name}"]
    if "bits_per_token" in figures:
        grid = run.prior.tokenizer.grid
        figures["bits_per_image"] = figures["bits_per_token"] * grid.num_positions * grid.num_channels
    return original, {"reconstruction": reconstruction, "teacher-forced": prediction}, figures


def _draw(rows: dict[str, np.ndarray]) -> Image.Image:
    """The rows below each other, each with its name at the left."""
    height, width = next(iter(rows.values())).shape[1:3]
    scale = -(-_SMALLEST // height)
    strips = [rearrange(np.pad(shown.repeat(scale, 1).repeat(scale, 2), ((0, 0), (0, _GAP), (0, _GAP), (0, 0)),
                               constant_values=255), "b h w c -> h (b w) c") for shown in rows.values()]
    whole = np.concatenate(strips)
    picture = Image.fromarray(np.pad(whole, ((0, 0), (_MARGIN, 0), (0, 0)), constant_values=255))
    drawing = ImageDraw.Draw(picture)
    for number, name in enumerate(rows):
        drawing.text((4, (number + 0.5) * strips[0].shape[0]), name, fill="black", anchor="lm")
    return picture


def run() -> None:
    """Entry point of the console script."""
    flags.run(main)


if __name__ == "__main__":
    run()
