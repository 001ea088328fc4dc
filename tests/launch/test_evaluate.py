"""launch.evaluate: killed and gone on with, swept over a sampler's settings; two runs of it beside each other."""
import json
import signal
import time

import numpy as np
import pytest

from vqim.evaluation.evaluated import read_evaluated

TOKENIZER, PRIOR = "--workdir=runs/debug/tokenizer", "--workdir=runs/debug/prior"
ONE_BY_ONE = ["--save_minutes=0", "--gin_bindings=evaluation.Reconstructions.batch_size = 2"]
SAMPLES = ["train.evaluators = [@evaluation.Samples()]",
           "evaluation.Samples.metrics = [@evaluation.WaveletDistance(), @evaluation.ShownImages()]",
           "evaluation.Samples.reference_split = 'validation'", "evaluation.Samples.batch_size = 185"]
OF_SAMPLES = [f"--gin_bindings={binding}" for binding in SAMPLES]


def numbers(folder):
    return json.loads((folder / "evaluation.json").read_text())


def killed(verbs, kept, number, *flags):
    """Starts a command and ends it by a signal as soon as it has kept some batches."""
    running = verbs.start("evaluate", *flags)
    deadline = time.monotonic() + 120
    while not kept.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    running.signal(number)
    return running.end()


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_numbers(verbs, runs):
    whole = verbs("evaluate", TOKENIZER, "--out=whole", *ONE_BY_ONE)
    assert whole.code == 0, whole.err
    kept = verbs.directory / "broken/evaluation_in_progress/0.npz"
    assert killed(verbs, kept, signal.SIGKILL, TOKENIZER, "--out=broken", *ONE_BY_ONE).code == -signal.SIGKILL
    stopped = verbs.start("evaluate", TOKENIZER, "--out=broken", *ONE_BY_ONE)
    stopped.wait_for("going on after")
    stopped.signal(signal.SIGTERM)
    stopped = stopped.end()
    assert stopped.code == 1 and "Interrupted by SIGTERM." in stopped.err, stopped.err
    # Another configuration begins anew, and does not go on with what is there.
    assert kept.exists()
    other = verbs("evaluate", TOKENIZER, "--out=broken", "--gin_bindings=evaluation.Reconstructions.batch_size = 185")
    assert "(configuration differs), so this one begins anew" in other.err
    assert killed(verbs, kept, signal.SIGKILL, TOKENIZER, "--out=broken", *ONE_BY_ONE).code == -signal.SIGKILL
    done = verbs("evaluate", TOKENIZER, "--out=broken", *ONE_BY_ONE)
    assert done.code == 0 and "going on after" in done.err, done.err
    assert numbers(verbs.directory / "broken") == numbers(verbs.directory / "whole")
    assert not kept.parent.exists()


def test_a_sweep_measures_every_combination_and_shows_them_on_a_page(verbs, runs):
    done = verbs("evaluate", PRIOR, *OF_SAMPLES, "--sweep=temperature=0.3,1.0", "--sweep=top_k=4,none", "--out=swept")
    assert done.code == 0, done.err
    found = numbers(verbs.directory / "swept")["sweep"]
    assert [point["settings"] for point in found] == [
        {"temperature": 0.3, "top_k": 4}, {"temperature": 0.3, "top_k": None},
        {"temperature": 1.0, "top_k": 4}, {"temperature": 1.0, "top_k": None}]
    alone = verbs("evaluate", PRIOR, *OF_SAMPLES, "--gin_bindings=prior.StepwiseSampler.temperature = 0.3",
                  "--gin_bindings=prior.StepwiseSampler.top_k = 4",
                  "--gin_bindings=prior.PriorObjective.sampler = @prior.StepwiseSampler()", "--out=alone")
    assert alone.code == 0, alone.err
    assert numbers(verbs.directory / "alone")["samples/fwd"] == found[0]["results"]["samples/fwd"]
    page = (verbs.directory / "swept/evaluation.html").read_text()
    assert all(words in page for words in ("temperature 0.3, top_k none", "samples/fwd over temperature", "<svg"))
    assert page.count("data:image/png") == 4 * 16


@pytest.mark.parametrize("flags, message", [
    ([PRIOR, "--sweep=heat=1,2"], "--sweep: heat: StepwiseSampler has no such setting; it has temperature"),
    ([TOKENIZER, "--sweep=temperature=1,2"], "--sweep needs evaluation.Samples among train.evaluators"),
    ([TOKENIZER, "--gin_bindings=train.evaluators = []"], "train.evaluators: there is nothing to measure"),
])
def test_an_evaluation_of_nothing_or_of_what_cannot_be_swept_is_refused(verbs, runs, flags, message):
    done = verbs("evaluate", *flags)
    assert done.code == 2 and message in done.err, done.err


@pytest.fixture
def two_runs(verbs, runs):
    """The tokenizer's run, measured as its training left it and again 20 steps before, as if they were two."""
    for name, step in (("late", "40"), ("early", "20")):
        done = verbs("evaluate", TOKENIZER, f"--out={name}", f"--restore={step}")
        assert done.code == 0, done.err
    return verbs.directory


def test_two_runs_are_compared_image_by_image(verbs, two_runs):
    done = verbs("compare", "early", "late", "--out=both.json", "--report=both.html")
    assert done.code == 0, done.err
    rows = {row["name"]: row for row in json.loads((two_runs / "both.json").read_text())["differences"]["late"]}
    early, late = (read_evaluated(two_runs / name, name).passes[0].values["evaluation/psnr"].astype(float)
                   for name in ("early", "late"))
    gaps = late - early
    assert rows["evaluation/psnr"]["difference"] == pytest.approx(gaps.mean(), rel=1e-9)
    assert rows["evaluation/psnr"]["error"] == pytest.approx(gaps.std(ddof=1) / np.sqrt(370), rel=1e-9)
    assert rows["evaluation/psnr"]["how"] == "paired over 370 images" and "paired over 370 images" in done.out
    assert rows["codebook/usage"]["error"] is None
    page = (two_runs / "both.html").read_text()
    assert "late against early" in page and page.count("<h2>images/reconstructions of") == 2


def test_runs_without_results_or_samples_say_how_to_make_them(verbs, runs):
    done = verbs("compare", "runs/debug/tokenizer", "runs/debug/prior")
    assert done.code == 2 and "python -m launch.evaluate --workdir=runs/debug/tokenizer" in done.err
    (verbs.directory / "images").mkdir()
    done = verbs("compare", "runs/debug/prior", "images")
    assert done.code == 2 and "python -m launch.sample --workdir=runs/debug/prior" in done.err


def test_a_run_and_a_folder_of_samples_stand_for_these_without_their_grid(verbs, runs):
    assert verbs("sample", PRIOR, "--num_images=12", "--seed=1").code == 0
    assert verbs("sample", PRIOR, "--num_images=12", "--seed=1", "--out=alone").code == 0
    done = verbs("compare", "runs/debug/prior", "alone", "--out=same.json")
    assert done.code == 0, done.err
    found = json.loads((verbs.directory / "same.json").read_text())
    assert found["protocol"]["count"] == 12 and found["results"]["fwd"] < 1e-9
