"""The quickstart with few steps: every stage as the launcher runs it, and the report that a newcomer opens."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from launch.quickstart import STAGES, _measures
from tests.evaluation.browser import find_browser, visit
from tests.support.processes import ROOT
from vqim.evaluation.codebook import entropy_bits
from vqim.runtime.torch import has_bfloat16_products
from vqim.third_party.noto_emoji.dataset import find_dataset
from vqim.training.summaries import read_metrics


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("quickstart") / "run"
    subprocess.run(
        [sys.executable, "-m", "launch.quickstart", f"--workdir={workdir}", "--runtime=torch", "--num_samples=8",
         "--gin_bindings=NUM_STEPS = 16", "--gin_bindings=optim.WarmupCosine.warmup_steps = 5",
         "--gin_bindings=NUM_CLASSES = 9", "--gin_bindings=prior.StepwiseSampler.guidance = 1.5"],
        cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return workdir


@pytest.fixture(scope="module")
def summary(quickstart):
    return json.loads((quickstart / "summary.json").read_text())


def test_summary_has_every_figure_and_its_baseline(summary):
    figures = ("psnr", "psnr_mean_image", "psnr_downscaled_4x", "codebook_usage", "prior_bits_per_token",
               "unigram_bits_per_token", "probe_top1", "raw_pixel_probe_top1", "samples_top1", "real_images_top1",
               "samples_nearest_training_image", "samples_near_duplicates", "samples_spread", "samples_fwd",
               "samples_proxy_fid", "training_images_fwd", "training_images_proxy_fid")
    assert all(np.isfinite(summary[name]) for name in figures)
    assert list(summary["seconds"]) == [
        "Stage 1", "Stage 2", "Probe", "Pixel probe", "Judge of samples", "Samples and this report"]
    assert all(seconds > 0 for seconds in summary["seconds"].values())


def test_stages_compute_in_bfloat16_where_the_processor_multiplies_it(quickstart):
    configs = [(quickstart / stage / "config.gin").read_text() for stage in STAGES]
    assert [config.count("dtype = 'bfloat16'") for config in configs] == [2 * has_bfloat16_products()] * len(STAGES)


def test_a_stage_gets_the_bindings_that_it_uses(quickstart):
    configs = {stage: (quickstart / stage / "config.gin").read_text() for stage in STAGES}
    assert [stage for stage in STAGES if "NUM_CLASSES = 9" in configs[stage]] == [
        stage for stage in STAGES if stage != "tokenizer"]
    assert [stage for stage in STAGES if "StepwiseSampler.guidance = 1.5" in configs[stage]] == ["prior"]


def test_a_binding_that_no_stage_uses_is_refused_before_any_work(tmp_path):
    workdir = tmp_path / "run"
    found = subprocess.run(
        [sys.executable, "-m", "launch.quickstart", f"--workdir={workdir}",
         "--gin_bindings=tokenizer.L1.weight = 3.0"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2 and not list(workdir.glob("*/checkpoints"))
    assert "No stage uses these bindings: tokenizer.L1.weight = 3.0." in found.stderr


def test_figures_that_a_size_of_images_does_not_have_are_left_out(summary):
    names = [measure.name for measure in _measures(summary)]
    without = {name: value for name, value in summary.items() if not name.endswith("_fwd")}  # 24x24, for example
    missing = [name for name in names if "wavelet" in name]
    assert len(missing) == 1 and [measure.name for measure in _measures(without)] == [
        name for name in names if name not in missing]


def test_summary_says_what_was_trained(summary):
    assert summary["image_size"] >= 32 and summary["patch_size"] >= 4 and summary["codes"] >= 512
    assert summary["l2_normalized"] and summary["code_dim"] < 128


def test_baselines_are_those_that_pillow_and_numpy_give(summary):
    arrays = np.load(find_dataset())
    images = resized(arrays["images"], 32)
    validation = images[arrays["is_validation"]]
    mean = images[~arrays["is_validation"]].mean(0, dtype=np.float64)
    assert summary["psnr_mean_image"] == pytest.approx(mean_psnr(validation, mean), abs=0.01)
    # torch's bicubic kernel on the way up is a little sharper (a = -0.75) than Pillow's (a = -0.5).
    assert summary["psnr_downscaled_4x"] == pytest.approx(
        mean_psnr(validation, resized(resized(validation, 8), 32)), abs=0.3)


def resized(images, size):
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size), Image.BICUBIC)) for image in images])


def mean_psnr(images, others):
    squares = ((images.astype(np.float64) - others) / 255) ** 2
    return (-10 * np.log10(squares.mean((1, 2, 3)))).mean()


def test_summary_repeats_what_the_stages_measured(quickstart, summary):
    last = read_metrics(quickstart / "tokenizer")[-1]
    assert summary["psnr"] == pytest.approx(last["evaluation/psnr"], abs=1e-3)
    last = read_metrics(quickstart / "probe")[-1]
    assert summary["probe_top1"] == pytest.approx(last["evaluation/top1"])


def test_the_unigram_entropy_is_at_most_that_of_even_use(summary):
    assert 0 <= summary["unigram_bits_per_token"] <= entropy_bits(np.ones(summary["codes"], np.int64))


@pytest.mark.skipif(find_browser() is None, reason="no Chromium here: .ci/run installs one")
def test_the_report_opens_in_a_browser_with_all_images_and_no_errors(quickstart):
    page = visit(quickstart / "report.html", screenshot=quickstart / "report.png")
    assert page.errors == [] and page.requests == []
    assert len(page.images) > 16 and all(image["width"] > 0 for image in page.images)
    for figure in ("PSNR", "Codes used", "bits per token", "top-1"):
        assert figure in page.text


def test_the_report_is_one_file(quickstart):
    text = (quickstart / "report.html").read_text()
    for name in ("protocol/psnr", "protocol/codebook/usage", "samples_fwd"):
        assert f"How {name} was measured" in text
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text
