"""Runs everything once on real images, in ten minutes of two cores: two stages, samples, linear probe, and a report.

    python -m launch.quickstart [--workdir=runs/quickstart]

The stages compute in bfloat16 where this machine multiplies it, and in float32 elsewhere, in about twice the time.

Each stage is a command that a user could type; it is printed before it runs. A stage gets those of --gin_bindings that
it uses: `NUM_CLASSES = 10` says nothing to the tokenizer. The same quickstart command again continues where it stopped.
At the end it writes report.html, and its figures to summary.json.
"""
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from absl import flags as absl_flags
from absl import logging

from vqim.checkpoint.files import is_url
from vqim.checkpoint.manager import CheckpointManager
from vqim.classifier.model import Classifier, TrainedClassifier
from vqim.classifier.objective import ClassifierObjective
from vqim.contracts.runtime import Runtime
from vqim.evaluation.copies import measure_copies
from vqim.evaluation.distances import downscaled_copy, mean_image_psnr, psnr, unit_range
from vqim.evaluation.extractors import proxy_if_installed
from vqim.evaluation.image_metrics import split_shown
from vqim.evaluation.measuring import compare_sets, comparison_protocol, images_and_labels, measure_array
from vqim.evaluation.passes import evaluate
from vqim.evaluation.report import Bar, Measure, Neighbours, ProbeAccuracies, Report, write_report
from vqim.registry.config import ConfigError, load
from vqim.registry.runtimes import make_runtime
from vqim.runtime.torch import has_bfloat16_products
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.trained import Trained, open_run
from vqim.training.summaries import read_metrics

from . import flags
from .session import RUNTIME_BINDINGS

GIN_FOLDER = absl_flags.DEFINE_string(
    "gin_folder", "gin/exp/quickstart", "Folder of tokenizer.gin, prior.gin, probe.gin, pixel_probe.gin and judge.gin.")

NUM_SAMPLES = absl_flags.DEFINE_integer("num_samples", 100, "Samples of each class that are judged.", lower_bound=8)

STAGES = {
    "tokenizer": "Stage 1",
    "prior": "Stage 2",
    "probe": "Probe",
    "pixel_probe": "Pixel probe",
    "judge": "Judge of samples",
}

IN_BFLOAT16 = ('training.GradientTask.dtype = "bfloat16"', 'training.GradientTask.evaluation_dtype = "bfloat16"')
"""A processor without products in bfloat16 takes 12 times as long for a step in it as in float32."""

NUM_SHOWN = 8
"""Samples of each class that the report shows: the first ones."""


def main() -> None:
    """Runs the stages, then evaluates their results."""
    if is_url(flags.WORKDIR.value or ""):
        raise ConfigError(f"--workdir must be a folder, since the report is written there; got {flags.WORKDIR.value}")
    workdir = Path(flags.workdir() or "runs/quickstart")
    workdir.mkdir(parents=True, exist_ok=True)
    commands = _commands(workdir)
    for title, command in zip(STAGES.values(), commands, strict=True):
        logging.info("%s: %s", title, shlex.join(command))
        start = time.perf_counter()
        result = subprocess.run([sys.executable, "-m", *command[2:]])
        if result.returncode == 2:  # a refused configuration, and its reason is shown: to go on would end here again
            sys.exit(2)
        if result.returncode:
            sys.exit(f"{title} ended with exit code {result.returncode}; the same command again goes on from there.")
        _add_seconds(workdir, title, time.perf_counter() - start)
    start = time.perf_counter()
    report, summary = _look(workdir, commands)
    _add_seconds(workdir, "Samples and this report", time.perf_counter() - start)
    summary["seconds"] = _seconds(workdir)
    write_report(workdir / "report.html", Report(**report, seconds=summary["seconds"]))
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    for name, value in summary.items():
        print(f"{name}: {value}")
    print(f"\nLook at {workdir / 'report.html'}, or at all curves with: tensorboard --logdir {workdir}")


def _commands(workdir: Path) -> list[list[str]]:
    """The commands that a user would type for the stages.

    Raises:
      ConfigError: a stage refuses one of --gin_bindings, or none uses it.
    """
    faster = IN_BFLOAT16 if flags.RUNTIME.value != "xla" and has_bfloat16_products() else ()
    unused = set(flags.GIN_BINDINGS.value)
    commands = []
    for stage in STAGES:
        gin_file, source = f"{GIN_FOLDER.value}/{stage}.gin", {"prior": "tokenizer", "probe": "prior"}.get(stage)
        always = [*([f'{source.upper()}_RUN = "{workdir / source}"'] if source else []), *faster]
        used = _used(gin_file, always)
        unused -= set(used)
        commands.append(["python", "-m", f"{__package__}.train", f"--gin_file={gin_file}",
                         f"--workdir={workdir / stage}", f"--runtime={flags.RUNTIME.value}",
                         *(f"--gin_bindings={binding}" for binding in [*always, *used])])
    if unused:
        raise ConfigError("No stage uses these bindings: " + "; ".join(sorted(unused)) +
                          f". Is the name another one? The stages are the files in {GIN_FOLDER.value}.")
    return commands


def _used(gin_file: str, always: list[str]) -> list[str]:
    """Those of --gin_bindings that a stage with other bindings uses."""
    given = flags.GIN_BINDINGS.value
    if not given:
        return []
    config = load([gin_file], [*always, *given], [])
    config.call("train")
    unused = [binding.source for binding in config.unused(RUNTIME_BINDINGS)]
    return [text for text in given if not any(source.endswith(f": {text}") for source in unused)]


def _look(workdir: Path, commands: list[list[str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report's content and the summary, from the runs' newest checkpoints and their metrics."""
    tokenizer, stage1 = _evaluate(workdir / "tokenizer")
    prior, stage2 = _open(workdir / "prior"), _last(workdir / "prior")
    judge_objective = cast(ClassifierObjective, _open(workdir / "judge").experiment.task.objective)
    judge = cast(Classifier, TrainedClassifier(judge_objective.network, str(workdir / "judge")))
    probe = _last(workdir / "probe")
    raw_pixels = _last(workdir / "pixel_probe")["evaluation/top1"]
    names = tokenizer.facts.class_names
    training_NHWC, _ = images_and_labels(tokenizer.experiment.data, "train")
    validation_NHWC, labels_N = images_and_labels(tokenizer.experiment.data, "validation")
    copies_NHWC = downscaled_copy(validation_NHWC, 4)
    summary = {
        "psnr": stage1["evaluation/psnr"],
        "psnr_mean_image": mean_image_psnr(training_NHWC, validation_NHWC),
        "psnr_downscaled_4x": psnr(unit_range(validation_NHWC), unit_range(copies_NHWC)).mean().item(),
        "codebook_usage": stage1["codebook/usage"],
        "prior_bits_per_token": stage2["evaluation/bits_per_token"],
        "unigram_bits_per_token": stage2["evaluation/unigram_bits_per_token"],
        "probe_top1": probe["evaluation/top1"],
        "raw_pixel_probe_top1": raw_pixels,
    }
    samples_NHWC, neighbours, figures, protocols = _judge(prior, judge, training_NHWC, validation_NHWC, labels_N)
    summary |= figures
    measures = _measures(summary)
    summary["bars_passed"] = {m.name: all(bar.passed(m.value) for bar in m.bars) for m in measures}
    model = tokenizer.tokenizer
    level, quantizer = model.grid.levels[0], cast(VectorQuantizer, model.quantizer)
    summary |= {
        "image_size": model.image_size, "patch_size": model.image_size // level.height, "codes": level.vocabulary,
        "code_dim": quantizer.codebook_VZ.shape[1], "l2_normalized": quantizer.normalize,
        "parameters": {**tokenizer.experiment.task.describe(), **prior.experiment.task.describe()},
        "steps": {stage: _last(workdir / stage)["step"] for stage in STAGES},
    }
    rows = stage1["images/reconstructions"]
    originals_BHWC, reconstructions_BHWC = split_shown(rows)
    samples = samples_NHWC.reshape(len(names), NUM_SAMPLES.value, *rows.shape[1:])[:, :NUM_SHOWN]
    report = {
        "title": "vqim quickstart",
        "summary": (f"A ViT-VQGAN with {level.height * level.width} tokens of {level.vocabulary} codes, a transformer "
                    f"over its tokens and a linear probe, trained from nothing on {len(training_NHWC):,} images of "
                    f"{model.image_size}x{model.image_size} pixels. Every figure is of the "
                    f"{len(validation_NHWC)} validation images, which no stage was trained on."),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}; {_device(workdir)}",
        "date": datetime.datetime.now().astimezone(),
        "measures": measures,
        "originals_BHWC": originals_BHWC, "reconstructions_BHWC": reconstructions_BHWC,
        "image_names": _names_of(originals_BHWC, validation_NHWC, labels_N, names),
        "code_counts_K": np.bincount(stage1["codebook/histogram"].values, minlength=level.vocabulary),
        "loss_curves": {STAGES[stage]: _losses(workdir / stage) for stage in ("tokenizer", "prior", "probe")},
        "samples": dict(zip(names, samples, strict=True)),
        "neighbours": neighbours,
        "probe": ProbeAccuracies(list(range(len(probe["evaluation/top1_by_layer"]))),
                                 [100 * value for value in probe["evaluation/top1_by_layer"]], 100 * raw_pixels),
        "protocols": {name: json.loads(text) for name, text in stage1.items() if "protocol/" in name} | protocols,
        "commands": [shlex.join(command) for command in commands],
        "config": "\n".join((workdir / stage / "config.gin").read_text() for stage in STAGES),
    }
    return report, summary


def _judge(
    prior: Trained, judge: Classifier, training_NHWC: np.ndarray, validation_NHWC: np.ndarray,
    labels_N: np.ndarray,
) -> tuple[np.ndarray, Neighbours, dict[str, float], dict[str, dict[str, str]]]:
    """Samples of all classes, some of them beside their nearest training images; figures of all, and protocols."""
    classes_M = np.repeat(np.arange(prior.prior.num_classes, dtype=np.int32), NUM_SAMPLES.value)
    samples_MHWC = prior.sample(classes_M)
    verdicts = prior.judge(judge)
    shown = training_NHWC[:len(validation_NHWC)]
    errors = unit_range(prior.reconstruct(shown)) - unit_range(shown)
    threshold = 1.25 * np.median((errors ** 2).mean((1, 2, 3)).sqrt().numpy()).item()
    chosen = _with_classes_of(labels_N)
    evenly = np.linspace(0, len(training_NHWC) - 1, len(chosen)).astype(int)
    sets = {"samples": samples_MHWC[chosen], "training_images": training_NHWC[evenly]}
    copies = measure_copies(samples_MHWC, training_NHWC, validation_NHWC, threshold)
    figures = {
        "samples_top1": verdicts(samples_MHWC, classes_M)[1].mean().item(),
        "real_images_top1": verdicts(validation_NHWC, labels_N)[1].mean().item(),
        "samples_nearest_training_image": copies.median_ratio,
        "samples_near_duplicates": copies.near_duplicates,
        "real_images_near_duplicates": copies.real_near_duplicates,
        "samples_spread": copies.spread_ratio,
    }
    distances, protocols = _distances(sets, validation_NHWC, prior.runtime)
    every = np.arange(0, len(classes_M), NUM_SAMPLES.value // 2)
    note = (f"Below {threshold:.3f}, 1.25 times what the tokenizer itself changes, a sample counts as a "
            f"near-duplicate: {copies.near_duplicates:.1%} of the samples and {copies.real_near_duplicates:.1%} of the "
            f"validation images. The median distance of samples is {copies.median_ratio:.2f} times that of validation "
            "images.")
    neighbours = Neighbours(samples_MHWC[every], training_NHWC[copies.nearest_N[every]], copies.to_nearest_N[every],
                            note)
    return samples_MHWC, neighbours, figures | distances, protocols


def _with_classes_of(labels_N: np.ndarray) -> np.ndarray:
    """Indices of as many samples of each class as there are labels of it, or of all that were drawn."""
    counts_Y = np.bincount(labels_N)
    return np.concatenate([label * NUM_SAMPLES.value + np.arange(min(count, NUM_SAMPLES.value))
                           for label, count in enumerate(counts_Y)])


def _distances(
    sets: Mapping[str, np.ndarray], real_NHWC: np.ndarray, runtime: Runtime,
) -> tuple[dict[str, float], dict[str, dict[str, str]]]:
    """Frechet distances of sets of images to real ones, and their protocols.

    They are `<set>_fwd` and, with its package, `<set>_proxy_fid`. They fall with the number of images: the sets should
    have as many as each other.
    """
    extractors = proxy_if_installed(real_NHWC.shape[1])
    real = measure_array("validation_images", real_NHWC, extractors, runtime)
    numbers: dict[str, float] = {}
    protocols: dict[str, dict[str, str]] = {}
    for name, images_NHWC in sets.items():
        measured = measure_array(name, images_NHWC, extractors, runtime)
        values, said = compare_sets(measured, real, extractors)[0], comparison_protocol(measured, real)
        networks: list[tuple[str, dict[str, str]]] = [("fwd", {})]
        networks += [("proxy_fid", extractor.describe()) for extractor in extractors]
        for measure, network in networks:
            if measure in values:  # fwd needs sides in multiples of 16
                numbers[f"{name}_{measure}"] = values[measure]
                protocols[f"{name}_{measure}"] = {word: str(value) for word, value in said.items()} | network
    return numbers, protocols


def _measures(summary: dict[str, float]) -> list[Measure]:
    """The headline figures and the thresholds that they have to reach."""
    unigram, raw_pixels = summary["unigram_bits_per_token"], 100 * summary["raw_pixel_probe_top1"]
    mean, small = summary["psnr_mean_image"], summary["psnr_downscaled_4x"]
    return [
        Measure("Reconstruction PSNR", summary["psnr"], "dB", {"mean image": mean, "4x smaller and back": small},
                [Bar("at least", 22.0), Bar("above", max(mean, small), "the better trivial copy")]),
        Measure("Codes used", 100 * summary["codebook_usage"], "%", {}, [Bar("at least", 95.0)], 1),
        Measure("Prior, bits per token", summary["prior_bits_per_token"], "bits", {"unigram entropy": unigram},
                [Bar("at most", 0.5 * unigram, "half of the unigram entropy")]),
        Measure("Samples that a classifier recognises", 100 * summary["samples_top1"], "%",
                {"real validation images": 100 * summary["real_images_top1"]},
                [Bar("at least", 75 * summary["real_images_top1"], "0.75 of real images")], 1),
        Measure("Samples' distance to the nearest training image", summary["samples_nearest_training_image"],
                "times that of validation images", {}, [Bar("at least", 0.8, "lower would be copies")]),
        Measure("Samples' distance to each other", summary["samples_spread"], "times that of validation images", {},
                [Bar("at least", 0.8, "lower would be all alike")]),
        *[Measure(f"Samples' Frechet {name}", summary[f"samples_{measure}"], "",
                  {"training images": summary[f"training_images_{measure}"]})
          for measure, name in [("fwd", "wavelet distance to validation images"),
                                ("proxy_fid", "distance in EfficientNet-Lite0")] if f"samples_{measure}" in summary],
        Measure("Probe, top-1", 100 * summary["probe_top1"], "%", {"raw pixels": raw_pixels},
                [Bar("above", raw_pixels, "a probe on raw pixels")], 1),
    ]


def _open(workdir: Path) -> Trained:
    """A stage's run."""
    config = load([str(workdir / "config.gin")], [], [])
    return open_run(config, str(workdir), make_runtime(config, flags.RUNTIME.value), needs_data=True)


def _evaluate(workdir: Path) -> tuple[Trained, dict[str, Any]]:
    """A stage's run, and its evaluators' results for its newest checkpoint."""
    run = _open(workdir)
    experiment = run.experiment
    results: dict[str, Any] = {}
    for evaluator in experiment.evaluators:
        results |= evaluate(evaluator.begin(experiment.task, experiment.data, run.arrays, run.runtime))
    return run, results


def _names_of(
    images_BHWC: np.ndarray, validation_NHWC: np.ndarray, labels_N: np.ndarray, names: Sequence[str],
) -> list[str]:
    """The class names of images from the validation set."""
    labels = {image.tobytes(): label for image, label in zip(validation_NHWC, labels_N, strict=True)}
    return [names[labels[image.tobytes()]] for image in images_BHWC]


def _last(workdir: Path) -> dict[str, Any]:
    """The newest value of each metric in a run."""
    newest: dict[str, Any] = {}
    for row in read_metrics(workdir):
        newest |= row
    return newest


def _losses(workdir: Path) -> dict[str, tuple[list[int], list[float]]]:
    """The curves of the loss and of its parts, if it has parts."""
    rows = [row for row in read_metrics(workdir) if "loss" in row]
    names = [name for name in rows[0] if name == "loss" or name.startswith("loss/")]
    return {name: ([row["step"] for row in rows], [row[name] for row in rows]) for name in names}


def _device(workdir: Path) -> str:
    metadata = CheckpointManager(f"{workdir}/tokenizer/checkpoints").open().metadata
    return f"{metadata['runtime']} runtime on {metadata['device']}, torch {metadata['torch']}"


def _seconds(workdir: Path) -> dict[str, float]:
    path = workdir / "seconds.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _add_seconds(workdir: Path, title: str, seconds: float) -> None:
    """Adds to a stage's time in all calls, so that the time of an interrupted quickstart includes all its parts."""
    found = _seconds(workdir)
    found[title] = round(found.get(title, 0.0) + seconds, 1)
    (workdir / "seconds.json").write_text(json.dumps(found) + "\n")


def run() -> None:
    """Entry point of the console script."""
    flags.run(main, without=("gin_file", "gin_search_path", "restore"))


if __name__ == "__main__":
    run()
