"""`Images`: exact pixels after a restart, what augmentation depends on, labels, corrupt files."""
import functools
import hashlib
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vqim.data.faults import TooManyCorruptError
from vqim.data.folder import ImageFolder
from vqim.data.images import Images
from vqim.data.source import Emoji, Example
from vqim.data.transforms import CenterCrop, RandomCrop, RandomResizedCrop, Resize

STRONG = RandomResizedCrop((0.2, 0.9))
UNCHANGED = RandomResizedCrop((1, 1), (1, 1), flip_probability=0)


def take(loader, count):
    return [next(loader) for _ in range(count)]


def assert_equal_batches(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def jpeg_folder(folder, emoji, count=12):
    """JPEG files in two classes, in train/ and val/."""
    for number in range(count):
        path = folder / ("train", "val")[number % 4 == 3] / "ab"[number % 2 == 0]
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(emoji["images"][number]).save(path / f"{number:02}.jpg", quality=95)
    (folder / "val" / "b").mkdir(exist_ok=True)
    Image.fromarray(emoji["images"][0]).save(folder / "val" / "b" / "99.jpg")
    return functools.partial(ImageFolder, folder)


def test_batches_have_the_shapes_and_types_of_the_contract():
    images = Images(Emoji, 32)
    for batch in (next(images.training(5, seed=0)), next(iter(images.evaluation(5)))):
        assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
            "images": ((5, 32, 32, 3), np.uint8), "labels": ((5,), np.int32), "valid": ((5,), bool)}
        assert batch["valid"].all()


def test_batch_like_has_the_shapes_and_types_of_a_batch():
    images = Images(Emoji, 32)
    like, batch = images.batch_like(5), next(images.training(5, seed=0))
    assert {name: (array.shape, array.dtype) for name, array in like.items()} == {
        name: (array.shape, array.dtype) for name, array in batch.items()}


def test_a_batch_like_another_takes_no_memory():
    images = Images(Emoji, 32).batch_like(10**9)["images"]
    assert images.strides == (0, 0, 0, 0) and images[-1, 0, 0, 0] == 0


def test_nothing_is_opened_before_it_is_needed():
    opened = []

    def open_split(split):
        opened.append(split)
        return Emoji(split)

    images = Images(open_split, 32)
    images.batch_like(5), images.prepare(np.zeros((40, 50, 3), np.uint8))
    assert (images.image_size, opened) == (32, [])
    images.num_examples("validation")
    images.training(5, seed=0).close()
    assert opened == ["train", "validation"]


def test_a_prepared_image_is_as_evaluation_has_it(emoji):
    images = Images(Emoji, 16)
    batch = next(iter(images.evaluation(1)))
    validation = np.flatnonzero(emoji["is_validation"])[0]
    np.testing.assert_array_equal(images.prepare(emoji["images"][validation]), batch["images"][0])


def test_images_say_what_they_hold():
    images = Images(Emoji, 32)
    assert (images.num_examples("train"), images.num_examples("validation")) == (1522, 370)
    assert images.num_classes == 9 and len(images.class_names) == 9 and images.image_size == 32


def test_an_epoch_of_training_has_each_image_with_its_label(emoji):
    images = Images(Emoji, 64, training_transform=UNCHANGED)
    batches = take(images.training(761, seed=0), 2)
    def digests(pictures, labels):
        return sorted((hashlib.sha256(x.tobytes()).hexdigest(), label)
                      for x, label in zip(pictures, labels.tolist(), strict=True))
    train = ~emoji["is_validation"]
    seen = [np.concatenate([batch[name] for batch in batches]) for name in ("images", "labels")]
    assert digests(*seen) == digests(emoji["images"][train], emoji["labels"][train])


def test_an_evaluation_has_the_images_in_the_order_of_the_file(emoji):
    batches = list(Images(Emoji, 64).evaluation(100))
    validation = emoji["is_validation"]
    np.testing.assert_array_equal(np.concatenate([batch["images"] for batch in batches])[:370],
                                  emoji["images"][validation])
    np.testing.assert_array_equal(np.concatenate([batch["labels"] for batch in batches])[:370],
                                  emoji["labels"][validation])
    assert [int(batch["valid"].sum()) for batch in batches] == [100, 100, 100, 70]
    assert not batches[-1]["images"][70:].any()


def test_an_evaluation_begins_at_any_batch_and_takes_evenly_spaced_images(emoji):
    labels = emoji["labels"][emoji["is_validation"]]
    images = Images(Emoji, 64)
    later = images.evaluation(100, first_batch=2)
    assert len(later) == 2
    np.testing.assert_array_equal(np.concatenate([batch["labels"] for batch in later])[:170], labels[200:])
    some = np.concatenate([batch["labels"] for batch in images.evaluation(10, num_examples=37)])
    np.testing.assert_array_equal(some[:37], labels[::10])
    assert len(list(images.evaluation(100, first_batch=4))) == len(images.evaluation(100, first_batch=9)) == 0


@pytest.mark.parametrize("before", [0, 1, 7])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_restoring_gives_identical_pixels(before, num_threads):
    images = Images(Emoji, 32, training_transform=STRONG, num_threads=num_threads)
    loader = images.training(300, seed=4)
    take(loader, before)
    position, expected = json.loads(json.dumps(loader.position())), take(loader, 3)
    fresh = Images(Emoji, 32, training_transform=STRONG).training(300, seed=4)
    fresh.restore(position)
    assert_equal_batches(take(fresh, 3), expected)


PROGRAM = """
import functools, hashlib, json, sys
from vqim.data.folder import ImageFolder
from vqim.data.images import Images
loader = Images(functools.partial(ImageFolder, sys.argv[1]), 24).training(5, seed=9)
loader.restore(json.loads(sys.argv[2]))
print([hashlib.sha256(next(loader)["images"].tobytes()).hexdigest() for _ in range(4)])
"""


def test_a_new_process_continues_with_identical_pixels(tmp_path, emoji):
    loader = Images(jpeg_folder(tmp_path, emoji), 24).training(5, seed=9)
    take(loader, 3)
    position = json.dumps(loader.position())
    expected = [hashlib.sha256(batch["images"].tobytes()).hexdigest() for batch in take(loader, 4)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), position], capture_output=True, text=True)
    assert done.stdout.strip() == str(expected), done.stderr
    assert "jax" not in done.stderr


def test_processes_see_the_pixels_that_one_would_see():
    images = Images(Emoji, 16, training_transform=STRONG)
    alone = next(images.training(12, seed=0))["images"]
    parts = [next(images.training(4, seed=0, process_index=i, process_count=3))["images"] for i in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), alone)


class OneImage:
    """A source with the same image everywhere, so that only augmentation can differ."""

    class_names = ("only",)

    def __init__(self, split):
        self.example = Example(Emoji(split)[0].image, 0, "image")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.example


def test_each_example_is_augmented_anew_in_each_epoch():
    batch = next(Images(OneImage, 32, training_transform=STRONG).training(12, seed=0))  # three epochs
    assert len({picture.tobytes() for picture in batch["images"]}) == 12


def test_seeds_augment_differently():
    images = Images(OneImage, 32, training_transform=STRONG)
    first, second = (next(images.training(4, seed=seed))["images"] for seed in (0, 1))
    assert not {picture.tobytes() for picture in first} & {picture.tobytes() for picture in second}


def test_views_are_augmented_passes_in_the_order_of_the_source(emoji):
    images = Images(Emoji, 64, training_transform=UNCHANGED)
    rows = np.concatenate([batch["images"] for batch in images.views(370, 0, 2, split="validation")])
    expected = emoji["images"][emoji["is_validation"]]
    np.testing.assert_array_equal(rows, np.concatenate([expected, expected]))


def test_each_view_is_another_augmentation():
    batch = next(iter(Images(OneImage, 32, training_transform=STRONG).views(12, 0, 3)))
    assert len({picture.tobytes() for picture in batch["images"]}) == 12


def test_labels_follow_their_images_in_folders(tmp_path, emoji):
    source = jpeg_folder(tmp_path, emoji)
    batch = next(iter(Images(source, 64).evaluation(20, split="train")))
    expected = {name.stem: "ab".index(name.parent.name) for name in tmp_path.glob("train/*/*.jpg")}
    names = sorted(tmp_path.glob("train/*/*.jpg"))
    assert batch["labels"][batch["valid"]].tolist() == [expected[name.stem] for name in names]
    for picture, name in zip(batch["images"], names, strict=False):
        np.testing.assert_allclose(picture.astype(int), np.asarray(Image.open(name)), atol=1)


def test_images_without_labels_have_label_minus_one(make_folder):
    source = functools.partial(ImageFolder, make_folder({"train": 3, "val": 2}))
    images = Images(source, 16)
    assert images.num_classes == 0 and images.class_names == ()
    assert next(images.training(4, seed=0))["labels"].tolist() == [-1] * 4


@pytest.fixture
def damaged(make_folder):
    """Twenty training images, two of them damaged: 003.png cut off, 007.png something else."""
    root = make_folder({"train/a": 20, "val/a": 4})
    path = root / "train" / "a" / "003.png"
    path.write_bytes(path.read_bytes()[:200])
    (root / "train" / "a" / "007.png").write_bytes(b"<html>not found</html>")
    return functools.partial(ImageFolder, root)


def test_training_replaces_a_corrupt_image_by_the_next_one(damaged, make_folder, tmp_path):
    def pictures(source):
        images = Images(source, 64, training_transform=UNCHANGED, max_corrupt_fraction=0.1)
        return next(images.training(20, seed=0))["images"]
    intact = pictures(functools.partial(ImageFolder, make_folder({"train/a": 20, "val/a": 4}, tmp_path / "intact")))
    rows = {picture.tobytes(): row for row, picture in enumerate(
        [np.asarray(Image.open(tmp_path / "intact" / "train" / "a" / f"{number:03}.png")) for number in range(20)])}
    order = [rows[picture.tobytes()] for picture in intact]
    assert [rows[picture.tobytes()] for picture in pictures(damaged)] == [{3: 4, 7: 8}.get(n, n) for n in order]


def test_a_corrupt_image_changes_no_other_pixel(damaged, make_folder, tmp_path):
    def batches(source):
        images = Images(source, 32, training_transform=STRONG, max_corrupt_fraction=0.1)
        return np.concatenate([batch["images"] for batch in take(images.training(5, seed=0), 4)])
    intact = functools.partial(ImageFolder, make_folder({"train/a": 20, "val/a": 4}, tmp_path / "intact"))
    differs = (batches(damaged) != batches(intact)).any(axis=(1, 2, 3))
    assert differs.sum() == 2


def test_a_corrupt_image_is_warned_of_once_with_its_name_and_counted(damaged, caplog):
    images = Images(damaged, 32, max_corrupt_fraction=0.1)
    loader = images.training(10, seed=0)
    assert loader.num_skipped == 0
    with caplog.at_level(logging.WARNING):
        take(loader, 8)  # four epochs
    assert sorted(record.getMessage().split(" (")[0].rsplit("/")[-1] for record in caplog.records) == [
        "003.png", "007.png"]
    assert all("skipping a corrupt image" in record.getMessage() for record in caplog.records)
    assert loader.num_skipped == 2


def test_evaluation_leaves_corrupt_images_out(damaged):
    evaluation = Images(damaged, 32, max_corrupt_fraction=0.1).evaluation(8, split="train")
    batches = list(evaluation)
    valid = np.concatenate([batch["valid"] for batch in batches])
    assert np.flatnonzero(~valid).tolist() == [3, 7, 20, 21, 22, 23]
    assert not batches[0]["images"][3].any() and batches[0]["labels"][3] == 0
    assert evaluation.num_skipped == 2


def test_too_many_corrupt_images_stop_the_run(damaged):
    loader = Images(damaged, 32, max_corrupt_fraction=0.05).training(20, seed=0)
    with pytest.raises(TooManyCorruptError, match=r"2 of 20 images are corrupt .* max_corrupt_fraction=0\.05 allows"):
        next(loader)


def test_restoring_with_corrupt_images_gives_identical_pixels(damaged):
    def loader():
        return Images(damaged, 32, training_transform=STRONG, max_corrupt_fraction=0.1).training(3, seed=2)
    first = loader()
    take(first, 9)
    second = loader()
    second.restore(first.position())
    assert_equal_batches(take(second, 8), take(first, 8))


def test_a_file_that_vanishes_is_an_error_not_a_corrupt_image(make_folder):
    root = make_folder({"train/a": 3, "val/a": 1})
    loader = Images(functools.partial(ImageFolder, root), 16).training(3, seed=0)
    (root / "train" / "a" / "001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"001\.png"):
        next(loader)


def test_splits_with_different_classes_are_refused():
    class Other(OneImage):
        def __init__(self, split):
            super().__init__(split)
            self.class_names = (split,)

    with pytest.raises(ValueError, match="same classes in both splits"):
        Images(Other, 32).num_examples("train")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"image_size": 0}, "image_size: expected an integer >= 1, got 0"),
    ({"image_size": "32"}, "image_size: .* got '32'"),
    ({"max_corrupt_fraction": 1}, r"max_corrupt_fraction: expected a number in \[0, 1\), got 1"),
    ({"num_threads": 0}, "num_threads: expected an integer from 1 to .*, got 0"),
    ({"source": Emoji("train")}, "source: .* without parentheses"),
])
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Images(**{"source": Emoji, "image_size": 32, **arguments})


def test_an_unknown_split_is_refused():
    images = Images(Emoji, 32)
    for use in (images.num_examples, lambda split: images.evaluation(4, split=split)):
        with pytest.raises(ValueError, match="split: expected one of train, validation; got 'test'"):
            use("test")


def test_evaluation_does_not_depend_on_anything_random():
    images = Images(Emoji, 24, evaluation_transform=CenterCrop())
    assert_equal_batches(list(images.evaluation(370)), list(images.evaluation(370)))
    assert (next(iter(Images(Emoji, 24, evaluation_transform=Resize()).evaluation(9)))["images"]
            == next(iter(images.evaluation(9)))["images"]).all()  # emoji are square


def test_training_crops_random_squares_unless_told_otherwise():
    default, told = (next(Images(Emoji, 24, **transform).training(20, seed=3))["images"]
                     for transform in ({}, {"training_transform": RandomCrop(1.0, flip_probability=0.5)}))
    np.testing.assert_array_equal(default, told)
