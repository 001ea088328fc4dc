"""launch.sample with an image and a mask, and `Trained.edit`, on a masked prior and on an autoregressive one."""
import shutil

import numpy as np
import pytest
from PIL import Image

import vqim
from tests.launch.verbs import Verbs

MASKED, PRIOR = "--workdir=runs/debug/masked", "--workdir=runs/debug/prior"


@pytest.fixture(scope="module")
def masked_run(finished, tmp_path_factory):
    """A finished run of gin/debug/masked_tiny.gin; to be read, not changed."""
    directory = tmp_path_factory.mktemp("masked")
    shutil.copytree(finished / "runs/debug/tokenizer", directory / "runs/debug/tokenizer")
    Verbs(directory, tmp_path_factory.mktemp("masked_logs")).train("masked_tiny", workdir="runs/debug/masked")
    return directory / "runs/debug/masked"


@pytest.fixture
def edit(masked_run, runs, verbs):
    """Runs launch.sample on an image of 16x16 pixels, `image.png`, with a copy of the runs."""
    shutil.copytree(masked_run, runs / "masked")
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(image).save(verbs.directory / "image.png")

    def run(*flags):
        return verbs("sample", "--image=image.png", "--out=out", *flags)

    return run


def drawn(verbs):
    """The images in `out`, but the original and the grid."""
    paths = sorted((verbs.directory / "out").glob("0*.png"))
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def test_pixels_outside_of_the_mask_are_the_images_own_and_inside_they_are_drawn(edit, verbs):
    done = edit(MASKED, "--mask=4,8,12,16", "--labels=Flags,Objects", "--num_images=3")
    assert done.code == 0, done.err
    assert done.out == "3 images in out\nPixels that are not masked are the image's own.\n"
    image, images = np.asarray(Image.open(verbs.directory / "image.png")), drawn(verbs)
    outside = np.ones((16, 16), bool)
    outside[8:16, 4:12] = False
    assert (images[:, outside] == image[outside]).all()
    assert (images[:, 8:16, 4:12] != image[8:16, 4:12]).any((1, 2, 3)).all()
    assert len(np.unique(images, axis=0)) == 3
    assert (np.asarray(Image.open(verbs.directory / "out/original.png")) == image).all()


def test_a_mask_file_is_the_same_as_its_box(edit, verbs):
    mask = np.zeros((16, 16), np.uint8)
    mask[8:16, 4:12] = 255
    Image.fromarray(mask).save(verbs.directory / "mask.png")
    assert edit(MASKED, "--mask=mask.png", "--num_images=2").code == 0
    by_file = drawn(verbs)
    assert edit(MASKED, "--mask=4,8,12,16", "--num_images=2", "--overwrite").code == 0
    assert (drawn(verbs) == by_file).all()


def test_without_pasting_unmasked_tokens_stay(edit, verbs, runs):
    done = edit(MASKED, "--mask=4,8,12,16", "--num_images=2", "--nopaste")
    assert done.code == 0, done.err
    assert done.out.endswith("Pixels that are not masked are what the decoder makes of the image's own tokens.\n")
    image, mask = np.asarray(Image.open(verbs.directory / "image.png")), np.zeros((16, 16), bool)
    mask[8:16, 4:12] = True
    model = vqim.load(str(runs / "masked"), runtime="torch", batch_size=64)
    given = model.tokens(image)
    given[:, [9, 10, 13, 14]] = -1  # 4x4 tokens of 4x4 pixels: rows 2 and 3, columns 1 and 2
    tokens = model.sample_tokens([0, 1], given=np.repeat(given, 2, 0))
    assert (np.where(given >= 0, tokens, given) == given).all()
    np.testing.assert_array_equal(drawn(verbs), model.images(tokens))
    np.testing.assert_array_equal(model.edit(image, mask, [0, 1], paste=False), drawn(verbs))


def test_an_autoregressive_prior_draws_lower_rows(edit, verbs):
    done = edit(PRIOR, "--mask=0,8,16,16", "--num_images=2")
    assert done.code == 0, done.err
    image = np.asarray(Image.open(verbs.directory / "image.png"))
    assert (drawn(verbs)[:, :8] == image[:8]).all() and (drawn(verbs)[:, 8:] != image[8:]).any()


@pytest.mark.parametrize(("flags", "message"), [
    ([PRIOR, "--mask=4,4,12,12"], "--image, --mask: mask must reach from its first token to the end of the image: "
                                  "StepwiseSampler draws row by row"),
    ([MASKED], "--image and --mask belong together"),
    ([MASKED, "--mask=4,4,20,12"], "a box left,top,right,bottom within 16x16 pixels, got 4,4,20,12"),
    ([MASKED, "--mask=nothing.png"], "--mask must be an image file, got nothing.png"),
    ([MASKED, "--mask=wide.png"], "mask must have the image's size, 16x16 pixels, got 20x16"),
    ([MASKED, "--mask=0,0,8,8", "--top_k=5"], "top_k: MaskedSampler has no such setting")])
def test_edits_that_cannot_be_made_are_refused(edit, verbs, flags, message):
    Image.new("L", (20, 16), 255).save(verbs.directory / "wide.png")
    done = edit(*flags)
    assert done.code == 2 and message in done.err
    assert not (verbs.directory / "out").exists()
