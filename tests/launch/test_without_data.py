"""What works on a machine that has a run and not its data; class names and numbers of labels."""
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.launch.verbs import Verbs, train_flags
from vqim.data.token_cache import Tokens
from vqim.trained import load

FOLDER = ("data.Images.source = @data.ImageFolder", "data.ImageFolder.path = 'images'",
          "data.ImageFolder.validation_fraction = 0.25")
PRIOR = ("NUM_CLASSES = 3", "TOKENIZER_RUN = 'tokenizer'", "prior.AutoregressivePrior.class_dropout_rate = 0.0")
SHORT = ("train.num_steps = 2", "train.evaluators = []")
CACHED = ("train.data = @data.Tokens()", "data.Tokens.path = 'cache'")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs `tokenizer`, `prior` and `cached` of folders of images, classes '1', '2' and '3', that are gone since."""
    directory = tmp_path_factory.mktemp("trained")
    verbs = Verbs(directory, tmp_path_factory.mktemp("trained_logs"))
    for label in ("1", "2", "3"):
        (directory / "images" / label).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(np.full([16, 16, 3], 10 * number, np.uint8)).save(
                directory / "images" / label / f"{number}.png")
    verbs.train("tokenizer_tiny", *SHORT, *FOLDER, workdir="tokenizer")
    verbs.train("prior_tiny", *SHORT, *FOLDER, *PRIOR, workdir="prior")
    assert verbs("cache_tokens", "--workdir=tokenizer", "--out=cache").code == 0
    verbs.train("prior_tiny", *SHORT, *CACHED, *PRIOR, workdir="cached")
    shutil.rmtree(directory / "images")
    shutil.rmtree(directory / "cache")
    return directory


@pytest.fixture
def elsewhere(trained, verbs):
    """Commands on a machine that has these runs alone."""
    for run in ("tokenizer", "prior", "cached"):
        shutil.copytree(trained / run, verbs.directory / run)
    return verbs


def names(folder):
    return sorted(path.name for path in folder.glob("0*.png"))


@pytest.mark.parametrize("run", ["prior", "cached"])
def test_samples_need_no_data_and_have_all_classes_in_turn(elsewhere, run):
    done = elsewhere("sample", f"--workdir={run}", "--num_images=4", "--batch_size=4", "--out=samples")
    assert done.code == 0, done.err
    assert names(elsewhere.directory / "samples") == ["00000_1.png", "00001_2.png", "00002_3.png", "00003_1.png"]


@pytest.mark.parametrize("run", ["prior", "cached"])
def test_the_python_way_in_needs_no_data(trained, run):
    model = load(str(trained / run), runtime="torch", batch_size=2)
    assert model.sample(["3", 1]).shape == (2, 16, 16, 3)


def test_images_without_a_class_are_refused_of_a_prior_that_was_never_shown_any(trained):
    with pytest.raises(ValueError, match="labels must be classes: this prior was trained with every image's class"):
        load(str(trained / "prior"), runtime="torch").sample(2)


def test_tokens_are_cached_of_other_data_than_the_runs(elsewhere):
    done = elsewhere("cache_tokens", "--workdir=tokenizer", "--out=cache",
                     "--gin_bindings=data.Images.source = @data.Emoji")
    assert done.code == 0, done.err
    assert Tokens(elsewhere.directory / "cache").num_classes == 9


def test_a_dry_run_needs_no_data(elsewhere):
    done = elsewhere("train", *train_flags("gin/debug/tokenizer_tiny.gin", "new", *FOLDER), "--dry_run")
    assert done.code == 0, done.err
    assert "batch: images torch.uint8 [16, 16, 16, 3], labels torch.int32 [16], valid torch.bool [16]\n" in done.out


@pytest.mark.parametrize("verb", ["train", "evaluate", "cache_tokens"])
def test_what_does_need_them_is_refused_without_them_and_with_the_line(elsewhere, files, verb):
    before = files(elsewhere.directory)
    flags = {"train": ["--gin_file=tokenizer/config.gin"], "evaluate": [], "cache_tokens": ["--out=cache"]}[verb]
    done = elsewhere(verb, "--workdir=tokenizer", *flags)
    assert done.code == 2, done.err
    assert "path: expected a folder, but 'images' does not exist" in done.err
    assert "data.ImageFolder.path = 'images'  (tokenizer/config.gin:" in done.err
    assert files(elsewhere.directory) == before


# Classes number 0, 1 and 2 are called '1', '2' and '3'.
@pytest.mark.parametrize(("label", "message"), [
    ("1", "labels: '1' is the name of class 0 and the number of another one, '2'; give the number 0, or the other's"),
    ("2", "labels: '2' is the name of class 1 and the number of another one, '3'; give the number 1, or the other's"),
    ("-1", "labels must be classes: this prior was trained with every image's class (class_dropout_rate 0), so -1"),
    ("4", "labels must be class numbers below 3 or names among ['1', '2', '3']; got '4'"),
])
def test_labels_that_mean_two_classes_or_none_that_was_trained_are_refused(elsewhere, label, message):
    done = elsewhere("sample", "--workdir=prior", "--num_images=2", f"--labels={label}", "--out=samples")
    assert done.code == 2 and message in done.err
    assert not (elsewhere.directory / "samples").exists()


@pytest.mark.parametrize(("label", "name"), [("0", "1"), ("3", "3")])
def test_labels_that_mean_one_class_are_taken(elsewhere, label, name):
    done = elsewhere("sample", "--workdir=prior", "--num_images=1", "--batch_size=1", f"--labels={label}",
                     "--out=samples")
    assert done.code == 0, done.err
    assert names(elsewhere.directory / "samples") == [f"00000_{name}.png"]
