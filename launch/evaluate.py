"""Measures a run's newest checkpoint with the evaluators of its configuration: numbers, images and a page.

    python -m launch.evaluate --workdir=runs/tokenizer
    python -m launch.evaluate --workdir=/shared/tokenizer --out=results
    python -m launch.evaluate --workdir=runs/tokenizer --gin_bindings='train.evaluators = [...]'

--gin_file and --gin_bindings override the run's own configuration. Written are evaluation.json, evaluation.html, and
evaluation.npz, which has every image's values for launch.compare.

Samples are drawn with other settings of the sampler, all combinations of them, by --sweep; acceptance_rate is one of
them where the configuration has a classifier that rejects samples:

    python -m launch.evaluate --workdir=runs/prior --sweep=temperature=0.8,0.9,1.0 --sweep=top_k=100,none
    python -m launch.evaluate --workdir=runs/prior --gin_file=gin/exp/rejection/classifier_model.gin \
      --gin_file=gin/run/reject_samples.gin --sweep=acceptance_rate=1.0,0.5,0.25

What was killed goes on where it was: the same command again, with the same checkpoint.
"""
import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags as absl_flags
from absl import logging

from vqim.checkpoint.files import is_url
from vqim.checkpoint.reader import Checkpoint
from vqim.contracts.evaluation import Curve, Evaluator, Histogram
from vqim.evaluation.evaluated import Evaluated, PassResults, write_evaluated
from vqim.evaluation.evaluation_report import write_evaluation
from vqim.evaluation.kept import Kept
from vqim.evaluation.page import clock
from vqim.evaluation.passes import Pass, PassEvaluation
from vqim.evaluation.samples import Samples
from vqim.evaluation.sweep import ACCEPTANCE_RATE, label, parse, swept
from vqim.registry.config import Config, ConfigError
from vqim.trained import Trained
from vqim.training.data_identity import DataChangedError, check_classes, identity
from vqim.training.interrupts import Interrupts
from vqim.training.summaries import Summaries

from . import flags, session
from .rehearsal import rehearse_evaluators

OUT = absl_flags.DEFINE_string("out", None, "Folder for the results; the run's directory unless given.")
SWEEP = absl_flags.DEFINE_multi_string(
    "sweep", [], "A setting of the sampler and its values, NAME=VALUE,VALUE...; none is a value too. May be given "
    "several times, for all combinations; acceptance_rate needs a classifier.")
SAVE_MINUTES = absl_flags.DEFINE_float(
    "save_minutes", 1.0, "How often what has been measured is kept on disk; 0 after every batch.", lower_bound=0)

IN_PROGRESS = "evaluation_in_progress"
_LOG_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Job:
    """An evaluator to run, at a point of a sweep or as it is."""

    evaluator: Evaluator
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """What messages call it."""
        name = self.evaluator.name if isinstance(self.evaluator, Pass) else type(self.evaluator).__name__.lower()
        return name + (f" at {label(self.settings)}" if self.settings else "")


def main() -> None:
    """Runs every evaluator once, and those of samples at each point of the sweep."""
    out = _folder()
    config, run = session.open_run(needs_data=True)
    if getattr(run.experiment.task.objective, "num_classes", 0):
        try:
            check_classes(list(run.facts.class_names), list(run.experiment.data.class_names), "the run")
        except DataChangedError as error:
            raise ConfigError(f"train.data: {error}") from error
    jobs = _jobs(config, run)
    config.refuse_unused(except_for=session.RUNTIME_BINDINGS)
    is_first = run.runtime.process_index == 0
    rehearse_evaluators(config, run.experiment, run.runtime)
    out.mkdir(parents=True, exist_ok=True)
    # Results that an earlier call wrote for this step are replaced, those for others stay.
    summaries = Summaries(out / "evaluation", run.step - 1, enabled=is_first, num_steps=1)
    passes: list[PassResults] = []
    about = _about(config, run)
    with Interrupts(run.runtime.hosts) as interrupts:
        for number, job in enumerate(jobs):
            words = f"{number + 1} of {len(jobs)}, {job.name}"
            kept = Kept(out / IN_PROGRESS / f"{number}.npz", {**about, "evaluator": f"{number}, {job.name}"},
                        run.runtime.hosts, 60 * SAVE_MINUTES.value)
            results, found = _measure(job, run, kept, interrupts, words, is_last=number + 1 == len(jobs))
            shown = {name for one in passes if not one.settings for name in (*one.numbers, *one.images)}
            if not job.settings and (twice := sorted(results.keys() & shown)):
                raise ConfigError(f"train.evaluators: two measure {', '.join(twice[:5])}; give one of them a `section`")
            passes.append(found)
            begin = f"sweep/{label(job.settings)}/" if job.settings else ""
            summaries.write(run.step, {begin + name: value for name, value in results.items()})
    summaries.close()
    if is_first:
        evaluated = Evaluated(session.run_directory(), run.step, tuple(passes))
        write_evaluated(out, evaluated)
        write_evaluation(out / "evaluation.html", evaluated, [_command()], config.text())
        shutil.rmtree(out / IN_PROGRESS, ignore_errors=True)
        _print(evaluated)


def _folder() -> Path:
    """Where the results go."""
    directory = OUT.value or session.run_directory()
    if is_url(directory):
        raise ConfigError("--out must be a folder on a disk, as an evaluation goes on from files there after a kill; "
                          f"got {directory}" + ("" if OUT.value else ", the run's own directory"))
    return Path(os.path.expanduser(directory))


def _jobs(config: Config, run: Trained) -> list[Job]:
    """The evaluators of the configuration; those of samples once for each point of the sweep, where there is one."""
    try:
        points = parse(SWEEP.value)
    except ValueError as error:
        raise ConfigError(f"--sweep: {error}") from error
    evaluators = run.experiment.evaluators
    if not evaluators:
        raise ConfigError("train.evaluators: there is nothing to measure; name evaluators in the run's configuration, "
                          "or by --gin_bindings")
    if points and not any(isinstance(evaluator, Samples) for evaluator in evaluators):
        raise ConfigError("--sweep needs evaluation.Samples among train.evaluators, got "
                          f"{', '.join(type(evaluator).__name__ for evaluator in evaluators)}")
    acceptance = config.call("sample") if any(ACCEPTANCE_RATE in point for point in points) else None
    jobs: list[Job] = []
    for evaluator in evaluators:
        if not points or not isinstance(evaluator, Samples):
            jobs.append(Job(evaluator, {}))
            continue
        if evaluator.acceptance.classifier is None and acceptance is not None:
            evaluator.acceptance = acceptance
        try:
            jobs += [Job(one, settings) for one, settings in zip(
                swept(evaluator, run.experiment.task, run.runtime, points), points, strict=True)]
        except ValueError as error:
            raise ConfigError(f"--sweep: {error}") from error
    return jobs


def _about(config: Config, run: Trained) -> dict[str, str]:
    """What decides the numbers besides the evaluator: with anything else, what was kept is not gone on with."""
    assert isinstance(run.checkpoint, Checkpoint)
    files = run.checkpoint.commit.get("files", {})
    data = json.dumps(identity(run.experiment.data), sort_keys=True)
    return {"checkpoint": f"step {run.step}, {_digest(json.dumps(files, sort_keys=True))}",
            "configuration": _digest(config.text()), "data": _digest(data),
            "runtime": json.dumps(run.runtime.describe(), default=str)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _measure(
    job: Job, run: Trained, kept: Kept, interrupts: Interrupts, words: str, is_last: bool,
) -> tuple[dict[str, Any], PassResults]:
    """Runs one evaluator to its end, from where it was kept; SystemExit when a signal comes."""
    evaluation = job.evaluator.begin(run.experiment.task, run.experiment.data, run.arrays, run.runtime)
    if isinstance(evaluation, PassEvaluation):
        kept.resume(evaluation)
        if evaluation.num_done:
            logging.info("%s: going on after %d of %d batches.", words, evaluation.num_done, evaluation.num_batches)
    logged_at = begin = time.monotonic()
    first = evaluation.num_done if isinstance(evaluation, PassEvaluation) else 0
    for _ in evaluation:
        if isinstance(evaluation, PassEvaluation):
            kept.after_batch(evaluation)
            if time.monotonic() - logged_at >= _LOG_SECONDS:
                logged_at = time.monotonic()
                logging.info("%s: %s", words, _progress(evaluation, first, logged_at - begin))
        if signal := interrupts.tick():
            if isinstance(evaluation, PassEvaluation):
                kept.save(evaluation)
            sys.exit(f"Interrupted by {signal}.")
    results = evaluation.result()
    if isinstance(evaluation, PassEvaluation) and not is_last:
        kept.save(evaluation)
    return results, _results(job, evaluation, results)


def _progress(evaluation: PassEvaluation, first: int, seconds: float) -> str:
    done, left = evaluation.num_done, evaluation.num_batches - evaluation.num_done
    rate = (done - first) / seconds
    num_items = evaluation.about.num_items
    return (f"batch {done} of {evaluation.num_batches} of {num_items:,} images  "
            f"{rate * num_items / evaluation.num_batches:.1f} images/s  {clock(left / rate)} left")


def _results(job: Job, evaluation: Any, results: dict[str, Any]) -> PassResults:
    """An evaluator's results, by their kinds."""
    about: dict[str, str] = {}
    more: dict[str, Any] = {}
    if isinstance(evaluation, PassEvaluation):
        about = {"count": str(evaluation.about.num_items), **evaluation.about.protocol}
        more = {"values": evaluation.values(), "checksums": evaluation.checksums()}
    return PassResults(
        job.evaluator.name if isinstance(job.evaluator, Pass) else type(job.evaluator).__name__, about,
        {name: float(value) for name, value in results.items() if isinstance(value, int | float)},
        {name: json.loads(value) for name, value in results.items()
         if isinstance(value, str) and "protocol/" in name},
        images={name: value for name, value in results.items() if isinstance(value, np.ndarray) and value.ndim == 4},
        curves={name: value.values for name, value in results.items() if isinstance(value, Curve)},
        counts={name: np.bincount(value.values) for name, value in results.items() if isinstance(value, Histogram)
                and np.issubdtype(value.values.dtype, np.integer)},
        settings=job.settings, **more)


def _command() -> str:
    """The command line that was given."""
    return shlex.join(["python", "-m", f"{__package__}.evaluate", *sys.argv[1:]])


def _print(found: Evaluated) -> None:
    """The numbers, and a line for each point of a sweep."""
    print(f"step: {found.step}")
    for one in found.passes:
        if one.settings:
            print(f"{label(one.settings)}: " + "  ".join(f"{name} {value:.6g}" for name, value in one.numbers.items()))
            continue
        for name, value in one.numbers.items():
            print(f"{name}: {value:.6g}")


def run() -> None:
    """Entry point of the console script."""
    flags.run(main)


if __name__ == "__main__":
    run()
