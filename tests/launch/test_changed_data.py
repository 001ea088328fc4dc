"""Images that are renamed, removed or replaced after a run has begun."""
import numpy as np
import pytest
from PIL import Image

from tests.launch.verbs import train_flags
from vqim.checkpoint.manager import CheckpointManager

FOLDER = ("data.Images.source = @data.ImageFolder", "data.ImageFolder.path = 'images'", "train.batch_size = 4",
          "train.evaluators = []")
TOKENIZER, CLASSIFIER = "gin/debug/tokenizer_tiny.gin", "gin/debug/classifier_tiny.gin"


@pytest.fixture
def pictures(verbs):
    """images/{train,val}/{cat,dog}, with 8 and 2 pictures in each."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for name in ("cat", "dog"):
            folder = verbs.directory / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{number}.png")
    return verbs.directory / "images"


def train(verbs, *bindings, file=TOKENIZER):
    return verbs("train", *train_flags(file, "run", *FOLDER, *bindings))


def test_a_run_says_what_its_data_are_also_in_a_dry_run(verbs, pictures):
    (pictures / "train/cat/notes.txt").touch()
    expected = ["train: 16 images, 2 classes (cat, dog)", "train: ignored: 1 files that end in .txt",
                "validation: 4 images, 2 classes (cat, dog)"]
    dry = verbs("train", *train_flags(TOKENIZER, "run", *FOLDER), "--dry_run")
    assert dry.code == 0 and all(f"{line}\n" in dry.out for line in expected), dry
    done = train(verbs, "train.num_steps = 1")
    assert done.code == 0 and all(line in done.err for line in expected), done.err


def test_a_renamed_class_is_refused_when_a_run_goes_on_or_is_evaluated(verbs, pictures):
    assert train(verbs, "train.num_steps = 2", "NUM_CLASSES = 2", file=CLASSIFIER).code == 0
    for split in ("train", "val"):
        (pictures / split / "cat").rename(pictures / split / "lion")
    message = "labels would mean other classes: gone: cat; new: lion"
    for done in (train(verbs, "train.num_steps = 4", "NUM_CLASSES = 2", file=CLASSIFIER),
                 verbs("evaluate", "--workdir=run")):
        assert done.code == 2 and message in done.err and "Traceback" not in done.err, done.err


def test_an_image_that_is_gone_is_refused_and_gone_on_without_on_purpose(verbs, pictures):
    assert train(verbs, "train.num_steps = 2").code == 0
    (pictures / "train/cat/3.png").unlink()
    done = train(verbs, "train.num_steps = 12")
    assert done.code == 2 and "Traceback" not in done.err
    assert "there are 15 training examples, and were 16 when the checkpoint was saved" in done.err
    done = train(verbs, "train.num_steps = 12", "train.accept_changed_data = True")
    assert done.code == 0, done.err
    assert CheckpointManager(verbs.directory / "run/checkpoints").open().metadata["data"]["num_examples"]["train"] == 15


def test_images_that_are_replaced_are_told(verbs, pictures):
    assert train(verbs, "train.num_steps = 2").code == 0
    Image.new("RGB", (20, 20)).save(pictures / "train/cat/3.png")
    done = train(verbs, "train.num_steps = 3")
    assert done.code == 0 and "The train examples are not the same as when the checkpoint was saved" in done.err


def test_an_image_that_goes_away_in_a_run_ends_it_with_a_sentence_and_a_checkpoint(verbs, pictures):
    running = verbs.start("train", *train_flags(TOKENIZER, "run", *FOLDER, "train.num_steps = 100_000",
                                                "train.log_every = 1", "train.save_every = 100_000"))
    running.wait_for(" step 3/")
    (pictures / "train/cat/3.png").unlink()
    done = running.end()
    assert done.code == 1 and "Traceback" not in done.err
    assert "Stopped: images/train/cat/3.png: No such file or directory" in done.err
    assert CheckpointManager(verbs.directory / "run/checkpoints").latest_step() >= 3
