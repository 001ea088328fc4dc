"""Sources: what they hold, and what they refuse."""
import gzip
import struct

import numpy as np
import pytest

from vqim.data.source import Arrays, Emoji, Idx


@pytest.fixture
def arrays(emoji):
    """Ten images of three classes, four of them for validation, as an .npz holds them."""
    return {"images": emoji["images"][:10], "labels": np.arange(10) % 3,
            "class_names": np.array(["a", "b", "c"]), "is_validation": np.arange(10) % 5 > 2}


@pytest.fixture
def save(tmp_path, arrays):
    """Saves the ten images with some arrays replaced (None: left out)."""
    def save_changed(**changes):
        path = tmp_path / "set.npz"
        np.savez(path, **{name: array for name, array in {**arrays, **changes}.items() if array is not None})
        return path
    return save_changed


def write_idx(path, array, zipped=True):
    """The format by its definition: two zero bytes, 8 for unsigned bytes, rank, sizes, values."""
    data = struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if zipped else data)


@pytest.fixture
def idx_folder(tmp_path):
    """Five training and three validation images of 4x6 pixels."""
    rng = np.random.default_rng(0)
    for stem, count in (("train", 5), ("t10k", 3)):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 4, 6)))
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", np.arange(count))
    return tmp_path


def test_the_emoji_splits_are_those_of_the_file(emoji):
    for split, chosen in (("train", ~emoji["is_validation"]), ("validation", emoji["is_validation"])):
        source = Emoji(split=split)
        assert [source[i].label for i in range(len(source))] == emoji["labels"][chosen].tolist()
        np.testing.assert_array_equal([source[i].image for i in range(len(source))], emoji["images"][chosen])


def test_the_emoji_set_has_1522_and_370_images_of_nine_classes():
    assert (len(Emoji("train")), len(Emoji("validation"))) == (1522, 370)
    assert len(Emoji("train").class_names) == 9 and "Flags" in Emoji("train").class_names


def test_an_array_example_is_named_by_its_place_in_the_file(save):
    assert Arrays(save(), "validation")[1].name == "set.npz[4]"


@pytest.mark.parametrize(("changes", "message"), [
    ({"images": np.zeros((10, 8, 8, 3), np.float32)}, "expected `images` uint8 .* got float32"),
    ({"images": np.zeros((10, 8, 8, 4), np.uint8)}, r"expected `images` .* got uint8 \[10, 8, 8, 4\]"),
    ({"labels": np.zeros(9, int)}, r"expected `labels` integers \[10\].* got int64 \[9\]"),
    ({"labels": np.zeros(10)}, "expected `labels` integers .* got float64"),
    ({"labels": np.array([0, 1, 2, 0, 3, 0, 0, 0, 0, 0])}, "expected labels from 0 to 2, .* label 4 is 3"),
    ({"labels": np.array([0, -1, 2, 0, 0, 0, 0, 0, 0, 0])}, "expected labels from 0 to 2, .* label 1 is -1"),
    ({"is_validation": np.zeros(10, np.uint8)}, "expected `is_validation` bool"),
    ({"is_validation": np.zeros(10, bool)}, "no image is in the validation split"),
    ({"class_names": None}, "no array class_names; it has images, labels, is_validation"),
])
def test_arrays_that_do_not_fit_are_refused(save, changes, message):
    with pytest.raises(ValueError, match=message):
        Arrays(save(**changes), "validation")


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "set.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ValueError, match=r"set\.npz: expected an \.npz file with the arrays images"):
        Arrays(tmp_path / "set.npz", "train")


def test_a_truncated_npz_is_refused(save):
    path = save()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"set\.npz: expected an \.npz file"):
        Arrays(path, "train")


@pytest.mark.parametrize("source", [Emoji, lambda split: Idx("nowhere", split), lambda split: Arrays("nowhere", split)])
def test_an_unknown_split_is_refused_with_the_known_ones(source):
    with pytest.raises(ValueError, match="split: expected one of train, validation; got 'test'"):
        source(split="test")


@pytest.mark.parametrize("source", [Arrays, Idx])
def test_a_missing_path_is_named(source):
    with pytest.raises(FileNotFoundError, match="'no/such/place' does not exist"):
        source("no/such/place", "train")


def test_grey_arrays_become_three_equal_channels(save, emoji):
    grey = emoji["images"][:10, :, :, 0]
    image = Arrays(save(images=grey), "train")[0].image
    np.testing.assert_array_equal(image, np.stack([grey[0]] * 3, axis=-1))


def test_idx_files_are_read_as_they_were_written(idx_folder):
    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 6))
    source = Idx(idx_folder, "train")
    assert len(source) == 5 and source[3].label == 3 and source[3].name == "train-images-idx3-ubyte.gz[3]"
    np.testing.assert_array_equal(source[3].image, np.stack([pictures[3]] * 3, axis=-1))


def test_idx_files_may_be_unzipped(idx_folder):
    for path in list(idx_folder.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert len(Idx(idx_folder, "validation")) == 3


def test_idx_classes_are_fashion_mnists_unless_given(idx_folder):
    assert Idx(idx_folder, "train").class_names[9] == "Ankle boot"
    assert Idx(idx_folder, "train", class_names=list("01234")).class_names == ("0", "1", "2", "3", "4")


def test_an_idx_label_without_a_class_is_refused(idx_folder):
    with pytest.raises(ValueError, match=r"train-labels.*expected labels from 0 to 3.*label 4 is 4"):
        Idx(idx_folder, "train", class_names=list("0123"))


def test_a_missing_idx_file_is_named(idx_folder):
    (idx_folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected the file t10k-labels-idx1-ubyte\.gz"):
        Idx(idx_folder, "validation")


@pytest.mark.parametrize(("damage", "message"), [
    (lambda data: data[:-9], "damaged gzip"),
    (lambda data: gzip.compress(gzip.decompress(data)[:-1]), "header promises 136 bytes but it has 135"),
    (lambda data: gzip.compress(b"\0\0\x0d\3" + gzip.decompress(data)[4:]), "first bytes 00000803.*got.*00000d03"),
    (lambda data: gzip.compress(gzip.decompress(data)[:7]), "header promises"),
])
def test_a_damaged_idx_file_is_refused(idx_folder, damage, message):
    path = idx_folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        Idx(idx_folder, "train")


def test_idx_files_of_different_lengths_are_refused(idx_folder):
    write_idx(idx_folder / "train-labels-idx1-ubyte.gz", np.zeros(4))
    with pytest.raises(ValueError, match="5 images but .* 4 labels"):
        Idx(idx_folder, "train")
