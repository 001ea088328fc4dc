"""launch.compile as a user calls it."""
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from vqim.runtime import tpu_compiler

ROOT = pathlib.Path(__file__).parents[2]
TINY = "--gin_file=gin/debug/tokenizer_tiny.gin"
KEYS = {"chips", "parameters", "hbm_gib", "hbm_limit_gib", "fits", "model_flops", "estimated_step_seconds",
        "estimated_images_per_second", "estimated_peak_share", "compile_seconds", "mesh", "versions"}


def missing():
    """Why programs cannot be compiled; None where they can."""
    try:
        tpu_compiler.check_installed()
    except ImportError as error:
        return str(error)


needs_compiler = pytest.mark.skipif(missing() is not None, reason=f"the TPU compiler is not installed: {missing()}")


def compile_(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "launch.compile", *arguments], cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "tpu"},
        capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One training step, of images in a folder that is not there."""
    dump = tmp_path_factory.mktemp("hlo")
    process = compile_(
        TINY, "--topology=v4:2x2x1", "--json", f"--dump_hlo={dump}", "--gin_bindings=train.batch_size = 16",
        "--gin_bindings=data.Images.source = @data.ImageFolder", "--gin_bindings=data.ImageFolder.path = '/not/here'")
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout), dump


@needs_compiler
def test_json_has_the_numbers_of_the_step_and_what_they_were_made_with(trained):
    report, _ = trained
    assert KEYS <= report.keys() and report["fits"] is True
    assert report["chips"] == 4 and report["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    assert 0 < report["hbm_gib"] < report["hbm_limit_gib"] == 30.75
    assert set(report["versions"]) == {"torch", "torch_xla", "jax", "jaxlib", "libtpu"}


@needs_compiler
def test_rates_are_of_the_batch_and_the_chips_peak(trained):
    report, _ = trained
    seconds = report["estimated_step_seconds"]
    assert report["estimated_images_per_second"] == pytest.approx(16 / seconds)
    assert report["estimated_peak_share"] == pytest.approx(report["model_flops"] / seconds / (4 * 275e12))


@needs_compiler
def test_the_compiler_and_our_model_count_the_same_products(trained):
    report, _ = trained
    (program,) = report["programs"]
    # The compiler may do less: it leaves out what nobody reads.
    assert 0.8 < 4 * program["executed_flops_per_chip"] / program["model_flops"] < 1.2


@needs_compiler
def test_programs_are_dumped_as_traced_and_as_compiled(trained):
    _, dump = trained
    assert sorted(path.name for path in dump.iterdir()) == ["0_train.hlo.txt", "0_train.stablehlo"]
    assert (dump / "0_train.hlo.txt").read_text().startswith("HloModule")


@needs_compiler
def test_a_step_that_does_not_fit_ends_with_1_and_names_the_largest_arrays():
    process = compile_(TINY, "--topology=v5e:1x1", "--gin_bindings=VOCABULARY = 1_000_000_000")
    assert process.returncode == 1, process.stderr
    assert "does not fit 15.75 GiB" in process.stdout
    assert re.search(r"\d+\.\d+G  \w+\[[\d,]*1000000000[\d,]*\].*  output of ", process.stdout)


@needs_compiler
def test_sampling_and_its_decoding_are_compiled_as_launch_sample_runs_them():
    process = compile_("--gin_file=gin/debug/prior_tiny.gin", "--topology=v4:2x2x1", "--step=sample", "--top=1")
    assert process.returncode == 0, process.stderr
    assert "_StepwiseDraw._step" in process.stdout and re.search(r"\bdecode\b", process.stdout)
    assert process.stdout.count("most expensive kinds of work (estimate") == 2


@pytest.mark.parametrize("topology, message", [("v4:4x4", "have 3 dimensions"), ("tpu", "expected v4, v5e, v5p, v6e")])
def test_a_topology_that_does_not_exist_is_refused(topology, message):
    process = compile_(TINY, f"--topology={topology}")
    assert process.returncode == 2 and message in process.stderr


@needs_compiler
def test_what_is_not_trained_is_no_work_in_the_compiled_program_either(trained):
    process = compile_(TINY, "--topology=v4:2x2x1", "--json", "--gin_bindings=train.batch_size = 16",
                       "--gin_bindings=training.Learner.trains = 'decoder/.*'")
    assert process.returncode == 0, process.stderr
    all_of_it, decoder_alone = (report["programs"][0]["executed_flops_per_chip"]
                                for report in (trained[0], json.loads(process.stdout)))
    # By hand, in multiples of one forward pass of encoder or decoder, which are alike: 3 + 3 against 1 + 3.
    assert decoder_alone / all_of_it == pytest.approx(4 / 6, rel=0.05)
