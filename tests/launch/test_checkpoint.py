"""launch.checkpoint, --restore, the lock of a run directory, and exported files."""
import json
import re
import shutil
import signal

import numpy as np
import pytest

import vqim
from tests.launch.verbs import train_flags
from vqim.registry.config import ConfigError

TOKENIZER = "gin/debug/tokenizer_tiny.gin"
RUN = "--workdir=runs/debug/tokenizer"


def flip(path):
    """Changes a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage(run, step):
    """Changes a bit of the arrays of a step."""
    folder = run / f"checkpoints/{step:08d}/state"
    flip(max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size))


def test_steps_are_listed_shown_and_verified(verbs, runs):
    done = verbs("checkpoint", "list", RUN)
    assert re.search(r"^ +20  20\d\d-\S+ \S+ +[\d.]+ MiB  evaluation/.* loss [\d.]+$", done.out, re.M), done
    done = verbs("checkpoint", "show", RUN, "--restore=20")
    for line in ("step 20 of runs/debug/tokenizer\n", "data position: {'next_example': 320, ", "params/tokenizer: ",
                 "metric evaluation/psnr: "):
        assert line in done.out
    done = verbs("checkpoint", "verify", RUN)
    assert (done.code, done.out) == (0, "step 20: whole\nstep 40: whole\n")
    damage(runs / "tokenizer", 40)
    done = verbs("checkpoint", "verify", RUN)
    assert done.code == 1
    assert "step 20: whole\nstep 40: damaged\n" in done.out and "1 of 2 steps are damaged" in done.err


def test_a_damaged_newest_step_is_told_and_passed_over_if_that_is_said(verbs, runs):
    flip(runs / "tokenizer/checkpoints/00000040/metadata.json")
    done = verbs("evaluate", RUN)
    assert done.code == 1 and "Traceback" not in done.err
    assert "00000040/metadata.json is damaged" in done.err and "--restore=latest_valid" in done.err
    done = verbs("evaluate", RUN, "--restore=latest_valid")
    assert done.code == 0, done.err
    assert json.loads((runs / "tokenizer/evaluation.json").read_text())["step"] == 20
    done = verbs("evaluate", RUN, "--restore=30")
    assert done.code == 2 and "has no committed step 30; it has [20, 40]" in done.err


def test_training_from_a_whole_step_ends_like_a_run_that_was_never_damaged(verbs, runs, arrays, same):
    run = runs / "tokenizer"
    expected = arrays(run, 40)
    damage(run, 40)
    done = verbs("train", *train_flags(TOKENIZER, "runs/debug/tokenizer"), "--restore=latest_valid")
    assert done.code == 0, done.err
    assert same(arrays(run, 40), expected)
    assert (run / "checkpoints/00000040.aside").exists()


def test_a_copy_is_a_run_and_pruning_leaves_what_it_is_told_to(verbs, runs, arrays, same):
    done = verbs("checkpoint", "copy", RUN, "--out=copied", "--restore=20")
    assert (done.code, done.out) == (0, "step 20 in copied\n"), done.err
    assert same(arrays(verbs.directory / "copied"), arrays(runs / "tokenizer", 20))
    assert verbs("evaluate", "--workdir=copied").code == 0
    done = verbs("checkpoint", "copy", RUN, "--out=copied")
    assert done.code == 2 and "--out must be new" in done.err

    (runs / "tokenizer/checkpoints/00000050.aside").mkdir()
    done = verbs("checkpoint", "prune", RUN, "--keep_latest=1")
    assert (done.code, done.out) == (0, "removed: 20\nremoved: 00000050.aside\nkept: 40\n"), done.err
    assert [path.name for path in (runs / "tokenizer/checkpoints").iterdir()] == ["00000040"]


def test_pruning_keeps_the_newest_whole_step_where_all_that_would_stay_is_damaged(verbs, runs):
    damage(runs / "tokenizer", 40)
    done = verbs("checkpoint", "prune", RUN, "--keep_latest=1")
    assert (done.code, done.out) == (0, "kept, since all that would stay is damaged: 20\nkept: 20, 40\n"), done.err


def test_an_edited_or_damaged_configuration_is_not_read_but_that_of_the_checkpoint(verbs, runs):
    path = runs / "tokenizer/config.gin"
    whole = path.read_bytes()
    expected = vqim.load(str(runs / "tokenizer"), runtime="torch").images(np.arange(64).reshape(4, 16, 1))
    path.write_bytes(whole.replace(b"ENCODER_HEADS = 2", b"ENCODER_HEADS = 1"))
    assert path.read_bytes() != whole
    for command in (("copy", "--out=copied"), ("export", "--out=net.safetensors")):
        assert verbs("checkpoint", command[0], RUN, command[1]).code == 0
    for name in ("runs/debug/tokenizer", "copied", "net.safetensors"):
        found = vqim.load(str(verbs.directory / name), runtime="torch")
        np.testing.assert_array_equal(found.images(np.arange(64).reshape(4, 16, 1)), expected)
    done = verbs("evaluate", "--workdir=copied")
    assert done.code == 0 and "not as training wrote it" not in done.err


@pytest.mark.parametrize("name", ["tokenizer", "prior"])
def test_an_exported_run_is_read_back_bit_for_bit(verbs, runs, name):
    done = verbs("checkpoint", "export", f"--workdir=runs/debug/{name}", f"--out={name}.safetensors")
    assert done.code == 0, done.err
    expected = vqim.load(str(runs / name), runtime="torch")
    path = shutil.move(verbs.directory / f"{name}.safetensors", verbs.directory / "elsewhere.safetensors")
    found = vqim.load(str(path), runtime="torch")
    assert found.step == 40 and found.facts == expected.facts
    assert {name: array.numpy().tobytes() for name, array in found.arrays.items()} == {
        name: array.numpy().tobytes() for name, array in expected.arrays.items()}
    np.testing.assert_array_equal(found.images(np.zeros((1, 16, 1), int)), expected.images(np.zeros((1, 16, 1), int)))


def test_an_exported_run_has_its_moving_averages_or_its_parameters(verbs):
    verbs.train("tokenizer_tiny", "train.num_steps = 3", "train.evaluators = []", "training.Learner.ema_decay = 0.9",
                workdir="run")
    for flag, ema in (("--ema", True), ("--noema", False)):
        assert verbs("checkpoint", "export", "--workdir=run", "--out=net.safetensors", flag).code == 0
        found = vqim.load(str(verbs.directory / "net.safetensors"), runtime="torch", ema=ema)
        expected = vqim.load(str(verbs.directory / "run"), runtime="torch", ema=ema)
        tokens = np.arange(64).reshape(4, 16, 1)
        np.testing.assert_array_equal(found.images(tokens), expected.images(tokens))
        if ema:
            with pytest.raises(ConfigError, match="was exported with moving averages in place of the parameters"):
                vqim.load(str(verbs.directory / "net.safetensors"), runtime="torch", ema=False)


def test_a_second_start_in_one_directory_is_refused_and_disturbs_nothing(verbs):
    flags = train_flags(TOKENIZER, "run", "train.num_steps = 100_000", "train.evaluators = []", "train.log_every = 1")
    first = verbs.start("train", *flags)
    first.wait_for(" step 2/")
    second = verbs("train", *flags)
    assert second.code == 2
    assert re.search(r"--workdir: run is being written by process \d+ on \S+ \(since 20", second.err)
    first.signal(signal.SIGKILL)
    first.end()
    third = verbs("train", *train_flags(TOKENIZER, "run", "train.num_steps = 1", "train.evaluators = []"))
    assert third.code == 0 and "was left by process" in third.err, third.err


def test_a_directory_whose_first_start_failed_takes_a_corrected_command(verbs):
    done = verbs("train", *train_flags("gin/debug/prior_tiny.gin", "run", "TOKENIZER_RUN = 'nowhere'"))
    assert done.code == 2 and "and nowhere has none: train it first, or name another" in done.err
    assert "Traceback" not in done.err
    done = verbs("train", *train_flags(TOKENIZER, "run", "train.num_steps = 2"))
    assert done.code == 0, done.err


def test_samples_are_not_mixed_with_older_ones(verbs, runs):
    flags = ["--workdir=runs/debug/prior", "--num_images=2", "--out=samples"]
    assert verbs("sample", *flags).code == 0
    (verbs.directory / "samples/notes.png").write_text("mine")
    done = verbs("sample", *flags)
    assert done.code == 2 and "--out must hold no older samples; samples has 3. --overwrite removes them" in done.err
    assert verbs("sample", *flags, "--num_images=1", "--overwrite").code == 0
    assert len(list((verbs.directory / "samples").glob("*.png"))) == 3
    (verbs.directory / "pictures").mkdir()
    (verbs.directory / "pictures/grid.png").write_text("mine")
    for first in ("--first=0", "--first=5"):  # no samples say that it is of launch.sample
        assert "pictures has 1" in verbs("sample", *flags, "--out=pictures", first).err
    assert (verbs.directory / "pictures/grid.png").read_text() == "mine"


def test_an_evaluation_may_write_elsewhere_and_says_where_it_cannot(verbs, runs, files):
    before = files(runs)
    assert verbs("evaluate", RUN, "--out=results").code == 0
    assert json.loads((verbs.directory / "results/evaluation.json").read_text())["step"] == 40
    assert files(runs) == before
    done = verbs("evaluate", RUN, "--out=runs/debug/tokenizer/config.gin")
    assert done.code == 1 and "Traceback" not in done.err
    assert "Stopped: runs/debug/tokenizer/config.gin: File exists" in done.err
