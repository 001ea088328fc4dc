"""Trains a tokenizer, and a prior over its tokens, for each value of one binding and each seed, and compares them.

SeQ-GAN's Figures 5 and 10, which judge a tokenizer by what a prior makes of its tokens, with alpha as the value:

    python -m launch.sweep --gin_file=gin/exp/seq_gan_emoji/alpha_1.gin \
      --prior_gin_file=gin/exp/seq_gan_emoji/prior.gin --judge=runs/quickstart/judge \
      --vary=tokenizer.SemanticPerceptual.alpha --value=0.0 --value=0.5 --value=1.0 --seeds=0,1,2 \
      --workdir=runs/alpha_sweep

Each run is a command that a user could type, and is printed. The same sweep again goes on where it stopped: what has
been trained or measured is not done again. At the end it writes sweep.json, sweep.png and sweep.html to --workdir.
Without --prior_gin_file, tokenizers alone are trained and compared. --gin_bindings are for all runs.
"""
import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import flags as absl_flags
from absl import logging

from vqim.registry.config import ConfigError, load

from . import flags, session, sweep_measures, sweep_report

VARY = absl_flags.DEFINE_string("vary", None, "What differs, such as tokenizer.SemanticPerceptual.alpha, or a macro.")
VALUES = absl_flags.DEFINE_multi_string("value", [], "A value, as gin writes it; to be given several times.")
SEEDS = absl_flags.DEFINE_list("seeds", ["0"], "Values of train.seed, separated by commas.")
PRIOR_GIN_FILE = absl_flags.DEFINE_multi_string(
    "prior_gin_file", [], "A gin file of the prior, with TOKENIZER_RUN. May be given several times; later files win.")
PRIOR_VARIES = absl_flags.DEFINE_bool(
    "prior_varies", False, "Give the value to priors too: where it decides the tokenizer's network or the grid.")
JUDGE = absl_flags.DEFINE_string("judge", None, "A classifier's run, which judges samples of priors with classes.")
NUM_SAMPLES = absl_flags.DEFINE_integer(
    "num_samples", None, "Samples of each prior; as many as there are validation images unless given.", lower_bound=2)


@dataclasses.dataclass(frozen=True)
class Point:
    """One value with one seed: a tokenizer's run, and a prior's run if there are priors.

    Attributes:
      value: as gin writes it.
      seed: of both runs.
      folder: the folder of both runs.
    """

    value: str
    seed: int
    folder: Path

    def command(self, stage: str) -> list[str]:
        """What a user would type to train 'tokenizer' or 'prior'."""
        files = flags.gin_files() if stage == "tokenizer" else flags.paths(PRIOR_GIN_FILE)
        bindings = [*flags.GIN_BINDINGS.value, f"train.seed = {self.seed}"]
        if stage == "prior":
            bindings.append(f"TOKENIZER_RUN = {str(self.folder / 'tokenizer')!r}")
        if stage == "tokenizer" or PRIOR_VARIES.value:
            bindings.append(f"{VARY.value} = {self.value}")
        return ["python", "-m", f"{__package__}.train", *(f"--gin_file={file}" for file in files),
                *(f"--gin_bindings={binding}" for binding in bindings),
                *([f"--gin_search_path={','.join(paths)}"] if (paths := flags.GIN_SEARCH_PATH.value) else []),
                f"--workdir={self.folder / stage}", f"--runtime={flags.RUNTIME.value}"]


def main() -> None:
    """Trains what has not been trained, measures what has not been measured, and writes the comparison."""
    points, stages = _points(), ["tokenizer", *(["prior"] if PRIOR_GIN_FILE.value else [])]
    for point in points:
        _check(point, stages)
    measures: list[dict[str, Any]] = []
    for point in points:
        for stage in stages:
            _train(point, stage)
        measures.append({"value": point.value, "seed": point.seed, **_measured(point, stages[-1])})
        # After each point, so that an interrupted sweep has a table of what there is.
        sweep_report.write(_workdir(), str(VARY.value), measures, [
            shlex.join(point.command(stage)) for point in points for stage in stages], len(points))
    print(sweep_report.table(str(VARY.value), measures))
    print(f"\n{_workdir() / 'sweep.html'}, {_workdir() / 'sweep.png'}, {_workdir() / 'sweep.json'}")


def _workdir() -> Path:
    return Path(flags.workdir() or "")


def _points() -> list[Point]:
    """Every value with every seed, first all values with the first seed: early tables compare values."""
    for name, given in (("workdir", flags.WORKDIR.value), ("gin_file", flags.GIN_FILE.value), ("vary", VARY.value),
                        ("value", VALUES.value), ("seeds", SEEDS.value)):
        if not given:
            raise ConfigError(f"--{name} must be given; see --help for an example")
    for name, given in (("value", VALUES.value), ("seeds", SEEDS.value)):
        if len(set(given)) < len(given):
            raise ConfigError(f"--{name} must not have the same twice, got {', '.join(given)}")
    if wrong := [seed for seed in SEEDS.value if not re.fullmatch(r"\d+", seed)]:
        raise ConfigError(f"--seeds must be whole numbers, got {', '.join(wrong)}")
    if JUDGE.value and not PRIOR_GIN_FILE.value:
        raise ConfigError("--judge judges samples: it needs --prior_gin_file")
    folders = {value: re.sub(r"[^\w.+-]+", "_", value).strip("_") for value in VALUES.value}
    if len(set(folders.values())) < len(folders):
        raise ConfigError(f"--value: two of {', '.join(folders)} would have the same folder")
    return [Point(value, int(seed), _workdir() / folders[value] / f"seed_{seed}")
            for seed in SEEDS.value for value in VALUES.value]


def _check(point: Point, stages: list[str]) -> None:
    """Refuses a wrong configuration of any stage before anything is trained."""
    for stage in stages:
        command = point.command(stage)
        given = {name: [word.removeprefix(f"--{name}=") for word in command if word.startswith(f"--{name}=")]
                 for name in ("gin_file", "gin_bindings")}
        try:
            session.experiment_without_data(load(
                given["gin_file"], given["gin_bindings"], flags.GIN_SEARCH_PATH.value))
        except ConfigError as error:
            raise ConfigError(f"The {stage} of {VARY.value} = {point.value}: {error}") from error
    if (judge := flags.path(JUDGE)) and not (Path(judge) / "config.gin").exists():
        raise ConfigError(f"--judge must be the directory of a classifier's run; got {judge}")


def _train(point: Point, stage: str) -> None:
    """Trains a stage to its end, unless that has been done.

    Raises:
      ConfigError: it has been done by another command.
    """
    command, done = point.command(stage), point.folder / f"{stage}_trained.json"
    if done.exists():
        if (earlier := json.loads(done.read_text())) != command:
            raise ConfigError(f"--workdir holds another sweep: {point.folder / stage} was trained by "
                              f"{shlex.join(earlier)}, and not by {shlex.join(command)}. Name another directory")
        logging.info("%s is trained", point.folder / stage)
        return
    print(shlex.join(command), flush=True)
    result = subprocess.run([sys.executable, *command[1:]])
    if result.returncode:
        sys.exit(f"{point.folder / stage} ended with exit code {result.returncode}; the same sweep again goes on from "
                 "there.")
    _write(done, command)


def _measured(point: Point, stage: str) -> dict[str, Any]:
    """A point's figures, measured once."""
    path = point.folder / "measures.json"
    judge = flags.path(JUDGE)
    settings = {"stage": stage, "judge": judge, "num_samples": NUM_SAMPLES.value}
    if path.exists() and (found := json.loads(path.read_text()))["settings"] == settings:
        measures: dict[str, Any] = found["measures"]
        return measures
    measures = sweep_measures.measure(str(point.folder / stage), stage, point.seed, judge, NUM_SAMPLES.value)
    _write(path, {"settings": settings, "measures": measures})
    return measures


def _write(path: Path, content: Any) -> None:
    """Writes JSON, completely or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def run() -> None:
    """Entry point of the console script."""
    flags.run(main)


if __name__ == "__main__":
    run()
