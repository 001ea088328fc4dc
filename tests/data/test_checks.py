"""What a user's source may give, and what is said of the data before a run."""
import functools

import numpy as np
import pytest
from PIL import Image

from vqim.data.faults import WrongExampleError
from vqim.data.folder import ImageFolder
from vqim.data.images import Images
from vqim.data.source import Emoji, Example

IMAGE = np.zeros((4, 5, 3), np.uint8)


class Given:
    """A source of good examples, one of which is given."""

    class_names = ("a", "b", "c")

    def __init__(self, example, split, at=5):
        self._example, self._at = example, at

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self._example if index == self._at else Example(IMAGE, 1, f"number {index}")


def images(example, at=5):
    return Images(functools.partial(Given, example, at=at), 4)


@pytest.mark.parametrize(("image", "label", "message"), [
    (np.full((4, 4, 3), 0.5, np.float32), 0, r"image uint8 .* got float32 \[4, 4, 3\] with values from 0.5 to 0.5"),
    (np.full((4, 4, 3), 999, np.uint16), 0, r"got uint16 \[4, 4, 3\] with values from 999 to 999"),
    (IMAGE[:, :, 0], 0, r"got uint8 \[4, 5\] with values from 0 to 0"),
    (np.zeros((4, 4, 4), np.uint8), 0, r"got uint8 \[4, 4, 4\]"),
    (np.zeros((0, 4, 3), np.uint8), 0, r"got uint8 \[0, 4, 3\]$"),
    (Image.new("RGB", (4, 4)), 0, "or the bytes of an image file; got Image"),
    (IMAGE, 3, "a label from 0 to 2; got 3"),
    (IMAGE, -1, "a label from 0 to 2; got -1"),
    (IMAGE, -5, "a label from 0 to 2; got -5"),
    (IMAGE, 1.0, "a label from 0 to 2; got 1.0"),
])
def test_an_example_that_is_no_image_with_a_label_is_named(image, label, message):
    wrong = Example(image, label, "mine/x.png")
    with pytest.raises(WrongExampleError, match="^example mine/x.png must have .*" + message):
        list(images(wrong).evaluation(4))
    with pytest.raises(WrongExampleError, match="^example mine/x.png must have "):
        images(wrong, at=0).num_examples("train")  # the first one is looked at before a run begins


def test_labels_may_be_integers_of_numpy_and_images_bytes(emoji, make_folder):
    assert list(images(Example(IMAGE, np.int64(2), "x")).evaluation(8))[0]["labels"].tolist() == [1] * 5 + [2, 1, 1]
    path = make_folder({"a": 1}) / "a/000.png"
    assert list(images(Example(path.read_bytes(), 2, "x")).evaluation(8))[0]["valid"].all()


def test_a_source_without_classes_gives_the_label_that_means_none():
    class Unlabelled(Given):
        class_names = ()

    with pytest.raises(WrongExampleError, match="must have the label -1, since the source has no classes; got 1"):
        Images(functools.partial(Unlabelled, None), 4).num_examples("train")


def test_counts_classes_and_what_is_ignored_are_told(make_folder):
    root = make_folder({"train/a": 3, "train/b": 2, "val/a": 1, "val/b": 1})
    (root / "train/a/notes.txt").touch()
    assert Images(functools.partial(ImageFolder, root), 8).describe() == [
        "train: 5 images, 2 classes (a, b)", "train: ignored: 1 files that end in .txt",
        "validation: 2 images, 2 classes (a, b)"]
    assert Images(Emoji, 8).describe()[0].startswith("train: 1,522 images, 9 classes (")


def test_the_fingerprint_is_of_images_and_labels():
    data = Images(Emoji, 8)
    assert data.fingerprint_of("train") == Images(Emoji, 16).fingerprint_of("train") != data.fingerprint_of(
        "validation")
