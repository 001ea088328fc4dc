"""launch.predict: the rows of its picture, its figures, and what it refuses."""
import numpy as np
import pytest
import torch
from PIL import Image

import vqim
from launch.session import short_names
from tests.launch.verbs import train_flags
from vqim.contracts.context import Context
from vqim.data.source import Emoji
from vqim.nn.module import apply

SIZE, SCALE, MARGIN, GAP = 16, 4, 200, 2


def cells(path):
    """The shown images by row and column, uint8 [rows, columns, H, W, 3], and how they are enlarged undone."""
    picture = np.asarray(Image.open(path))[:, MARGIN:]
    side = SIZE * SCALE + GAP
    rows, columns = picture.shape[0] // side, picture.shape[1] // side
    parts = picture.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
    return parts[:, :, :-GAP:SCALE, :-GAP:SCALE]


def expected_rows(directory, images, labels):
    """By vqim.load: reconstructions, and the likeliest tokens given the true ones, decoded."""
    run = vqim.load(str(directory), runtime="torch")
    tokens = run.tokens(images)
    with torch.no_grad():
        logits_BSV = apply(run.prior.prior.forward, run.prior.prior_arrays(run.arrays), torch.from_numpy(tokens),
                           torch.from_numpy(labels), Context(run.runtime.kernels))
    likeliest = logits_BSV.argmax(-1).reshape(tokens.shape).numpy()
    return run.images(tokens), run.images(likeliest), float((likeliest == tokens).mean())


def test_rows_are_originals_and_for_each_run_what_it_makes_of_them(runs, verbs):
    done = verbs("train", *train_flags("gin/debug/prior_tiny.gin", "runs/debug/other", "train.seed = 1",
                                       "NUM_STEPS = 12", "train.evaluators = []"))
    assert done.code == 0, done.err
    done = verbs("predict", "--workdir=runs/debug/prior", "--beside=runs/debug/other", "--num_images=5")
    assert done.code == 0, done.err
    shown = cells(verbs.directory / "teacher_forced.png")
    assert shown.shape == (5, 5, SIZE, SIZE, 3)
    run = vqim.load(str(runs / "prior"), runtime="torch")
    source = Emoji("validation")
    stride = len(source) // 5
    examples = [source[i] for i in range(0, 5 * stride, stride)]
    images = np.stack([run.prepare(example.image) for example in examples])
    labels = np.array([example.label for example in examples])
    np.testing.assert_array_equal(shown[0], images)
    for name, (reconstruction, prediction) in (("prior", shown[1:3]), ("other", shown[3:5])):
        reconstructed, predicted, _ = expected_rows(runs / name, images, labels)
        np.testing.assert_array_equal(reconstruction, reconstructed)
        np.testing.assert_array_equal(prediction, predicted)


def test_runs_in_folders_of_the_same_names_have_rows_with_different_names():
    assert short_names(["sweep/0.0/seed_0/prior", "sweep/1.0/seed_0/prior"]) == ["0.0/seed_0/prior", "1.0/seed_0/prior"]
    assert short_names(["runs/alpha_0/prior", "runs/alpha_1/prior"]) == ["alpha_0/prior", "alpha_1/prior"]


def test_the_share_of_expected_tokens_is_that_of_the_whole_split(runs, verbs):
    done = verbs("predict", "--workdir=runs/debug/prior", "--num_images=1")
    source = Emoji("validation")
    run = vqim.load(str(runs / "prior"), runtime="torch")
    examples = [source[i] for i in range(len(source))]
    images = np.stack([run.prepare(example.image) for example in examples])
    _, _, accuracy = expected_rows(runs / "prior", images, np.array([example.label for example in examples]))
    printed = dict(line.strip().split(": ") for line in done.out.splitlines() if line.startswith("  "))
    assert abs(float(printed["token_accuracy"]) - accuracy) < 1e-5
    # Six digits of each are printed: half a unit of the last one, and 16 times half a unit.
    assert float(printed["bits_per_image"]) == pytest.approx(
        16 * float(printed["bits_per_token"]), rel=0, abs=0.5e-4 + 16 * 0.5e-5)


@pytest.mark.parametrize("out", ["picture", "nowhere/picture.png", "runs"])
def test_what_is_no_place_for_a_picture_is_refused_before_the_work(runs, verbs, out):
    done = verbs("predict", "--workdir=runs/debug/prior", f"--out={out}")
    assert done.code == 2 and "--out" in done.err and not done.out


def test_a_tokenizers_run_is_refused(runs, verbs):
    done = verbs("predict", "--workdir=runs/debug/prior", "--beside=runs/debug/tokenizer")
    assert done.code == 2
    assert "runs/debug/tokenizer: this needs the run of a prior, this one trains a tokenizer" in done.err
