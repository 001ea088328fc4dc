"""launch.sweep: its figures against the runs themselves, what is not done again, means with errors, and refusals."""
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import vqim
from launch.sweep_measures import evenly
from launch.sweep_report import summarise, table
from tests.launch.verbs import Verbs, train_flags
from tests.support.processes import ROOT
from vqim.contracts.context import Context
from vqim.data.decode import decode
from vqim.data.folder import ImageFolder
from vqim.data.source import Emoji
from vqim.nn.module import apply

DATA = ("data.Images.source = @data.ImageFolder", "data.ImageFolder.path = 'images'")
COMMAND = (
    "--gin_file=gin/debug/tokenizer_tiny.gin", "--prior_gin_file=gin/debug/prior_tiny.gin",
    "--vary=tokenizer.L2.weight", "--value=1.0", "--value=0.25", "--workdir=runs/sweep", "--judge=runs/judge",
    "--gin_bindings=NUM_STEPS = 2", "--gin_bindings=optim.WarmupCosine.warmup_steps = 0",
    "--gin_bindings=train.evaluators = []", *(f"--gin_bindings={binding}" for binding in DATA), "--num_samples=12")


def sweep(directory, *command):
    """`python -m launch.sweep` in a directory: it starts processes, which the server of `Verbs` is not made for."""
    return subprocess.run([sys.executable, "-m", "launch.sweep", "--runtime=torch", *command], cwd=directory, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                          capture_output=True, timeout=900)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A directory with a sweep of two values, and what the command printed."""
    directory = tmp_path_factory.mktemp("sweep")
    # Emoji in nine classes, few of them, since the network of proxy_fid takes a tenth of a second an image.
    for split, count in (("train", 3), ("val", 2)):
        source = Emoji("train" if split == "train" else "validation")
        for number in range(9 * count):
            path = directory / f"images/{split}/class_{number % 9}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source[number].image).save(path)
    verbs = Verbs(directory, tmp_path_factory.mktemp("logs"))
    done = verbs("train", *train_flags("gin/debug/classifier_tiny.gin", "runs/judge", "NUM_STEPS = 4",
                                       "optim.WarmupCosine.warmup_steps = 0", *DATA))
    assert done.code == 0, done.err
    done = sweep(directory, *COMMAND)
    assert done.returncode == 0, done.stderr
    return directory, done.stdout


def rows_of(directory):
    return {row["value"]: row for row in json.loads((directory / "runs/sweep/sweep.json").read_text())["runs"]}


@pytest.fixture(scope="module")
def validation(swept):
    """The validation images and their classes."""
    run = vqim.load(str(swept[0] / "runs/sweep/1.0/seed_0/prior"), runtime="torch")
    source = ImageFolder(swept[0] / "images", "validation")
    examples = [source[i] for i in range(len(source))]
    return (np.stack([run.prepare(decode(example.image)) for example in examples]),
            np.array([example.label for example in examples]))


@pytest.mark.parametrize("value", ["1.0", "0.25"])
def test_figures_are_those_of_the_runs_on_the_validation_images(value, swept, validation):
    images, labels = validation
    run = vqim.load(str(swept[0] / f"runs/sweep/{value}/seed_0/prior"), runtime="torch")
    figures = rows_of(swept[0])[value]
    errors = ((run.reconstruct(images) / 255 - images / 255) ** 2).mean((1, 2, 3))
    assert figures["psnr"] == pytest.approx((-10 * np.log10(errors)).mean(), abs=1e-3)
    tokens = torch.from_numpy(run.tokens(images))
    with torch.no_grad():
        logits_BSV = apply(run.prior.prior.forward, run.prior.prior_arrays(run.arrays), tokens,
                           torch.from_numpy(labels), Context(run.runtime.kernels))
    bits = [sum(math.log2(1 / p) for p in of_image) for of_image in
            torch.softmax(logits_BSV.double(), -1).gather(2, tokens)[..., 0].tolist()]
    assert figures["bits_per_image"] == pytest.approx(np.mean(bits), rel=1e-4)
    assert figures["num_samples"] == 12 and figures["fwd"] > 0


def test_the_judge_says_of_real_images_what_its_own_run_says(swept):
    rows = [json.loads(line) for line in (swept[0] / "runs/judge/metrics.jsonl").read_text().splitlines()]
    own = [row["evaluation/top1"] for row in rows if "evaluation/top1" in row][-1]
    for row in rows_of(swept[0]).values():
        assert row["real_images_top1"] == pytest.approx(own, abs=1e-6) and 0 <= row["judged_top1"] <= 1


def test_each_run_has_its_own_value_and_tokenizer(swept):
    for value in ("1.0", "0.25"):
        folder = swept[0] / f"runs/sweep/{value}/seed_0"
        assert f"\ntokenizer.L2.weight = {value}\n" in (folder / "tokenizer/config.gin").read_text()
        assert f"{folder.relative_to(swept[0])}/tokenizer'" in (folder / "prior/config.gin").read_text()


def test_the_same_sweep_again_trains_and_measures_nothing(swept):
    directory, first = swept
    before = {path: path.stat().st_mtime_ns for path in (directory / "runs/sweep").rglob("*") if path.is_file()
              and not path.name.startswith("sweep.")}
    done = sweep(directory, *COMMAND)
    assert done.returncode == 0 and "launch.train" in first and "launch.train" not in done.stdout
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert done.stdout.splitlines() == [line for line in first.splitlines() if "launch.train" not in line]


def test_a_sweep_with_other_runs_in_the_same_place_is_refused(swept):
    done = sweep(swept[0], *COMMAND, "--gin_bindings=NUM_STEPS = 3")
    assert done.returncode == 2 and "holds another sweep" in done.stderr


def test_a_binding_that_nothing_uses_is_refused_before_any_run(swept):
    directory, _ = swept
    done = sweep(directory, *COMMAND, "--vary=tokenizer.SemanticPerceptual.alpha", "--workdir=runs/refused")
    assert done.returncode == 2 and "tokenizer.SemanticPerceptual.alpha" in done.stderr
    assert not (directory / "runs/refused").exists()


def test_a_prior_is_measured_where_its_tokenizer_was_before(tmp_path):
    """A sweep of tokenizers alone, to which --prior_gin_file is added."""
    script = """
from pathlib import Path
from launch import flags, sweep, sweep_measures
sweep_measures.measure = lambda workdir, stage, *others: {stage: 1.0}
point = sweep.Point("1.0", 0, Path("."))
flags.run(lambda: print(*(sweep._measured(point, stage) for stage in ("tokenizer", "tokenizer", "prior"))))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)
    assert done.stdout == "{'tokenizer': 1.0} {'tokenizer': 1.0} {'prior': 1.0}\n", done.stderr


def test_samples_have_the_shares_of_classes_of_a_sorted_set():
    labels = np.repeat(np.arange(4), [8, 4, 2, 2])
    assert np.bincount(evenly(labels, 8)).tolist() == [4, 2, 1, 1]
    assert np.bincount(evenly(labels, 32)).tolist() == [16, 8, 4, 4]


def test_means_have_the_standard_error_of_the_mean():
    numbers = [3.0, 4.5, 7.0]
    rows = [{"value": "a", "seed": seed, "psnr": number} for seed, number in enumerate(numbers)]
    found = summarise([*rows, {"value": "b", "seed": 0, "psnr": 1.0}])
    assert found["a"]["psnr"]["mean"] == pytest.approx(np.mean(numbers))
    assert found["a"]["psnr"]["standard_error"] == pytest.approx(np.std(numbers, ddof=1) / 3 ** 0.5)
    assert found["b"]["psnr"] == {"mean": 1.0, "standard_error": None, "seeds": 1}


def test_the_table_has_a_row_a_value_and_leaves_out_what_nobody_has():
    text = table("alpha", [{"value": "0.0", "seed": 0, "psnr": 20.0}, {"value": "1.0", "seed": 0, "psnr": 18.25}])
    assert text.splitlines() == ["| alpha | psnr |", "|---|---|", "| 0.0 | 20 |", "| 1.0 | 18.25 |"]
