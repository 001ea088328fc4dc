"""Folders of image files: classes, splits, and folders that make no sense."""
import hashlib

import pytest
from PIL import Image

from vqim.data.decode import decode
from vqim.data.folder import ImageFolder, in_validation


def names(source):
    return [source[i].name.rsplit("images/", 1)[1] for i in range(len(source))]


def test_classes_are_the_sorted_subfolders_and_label_their_files(make_folder):
    root = make_folder({"train/zebra": 1, "train/ant": 2, "val/zebra": 1, "val/ant": 1})
    source = ImageFolder(root, "train")
    assert source.class_names == ("ant", "zebra")
    assert [(source[i].label, name) for i, name in enumerate(names(source))] == [
        (0, "train/ant/000.png"), (0, "train/ant/001.png"), (1, "train/zebra/000.png")]


@pytest.mark.parametrize("folder", ["val", "validation"])
def test_the_validation_split_is_its_folder_with_the_training_labels(make_folder, folder):
    source = ImageFolder(make_folder({"train/a": 1, "train/b": 1, f"{folder}/b": 2}), "validation")
    assert source.class_names == ("a", "b")
    assert names(source) == [f"{folder}/b/000.png", f"{folder}/b/001.png"] and source[0].label == 1


def test_the_bytes_of_the_file_are_the_image(make_folder):
    root = make_folder({"a": 40})
    assert ImageFolder(root, "train")[0].image.startswith(b"\x89PNG")


def test_without_split_folders_the_hash_of_the_name_decides(make_folder):
    root = make_folder({"a": 30, "b": 30})
    everything = [f"{class_name}/{number:03}.png" for class_name in "ab" for number in range(30)]
    expected = [name for name in everything if hashlib.sha256(name.encode()).digest()[0] < 64]  # the first quarter
    assert names(ImageFolder(root, "validation", validation_fraction=0.25)) == expected
    assert names(ImageFolder(root, "train", validation_fraction=0.25)) == sorted(set(everything) - set(expected))


def test_the_hash_puts_the_given_share_into_validation():
    share = sum(in_validation(f"class/{number}.jpg", 0.1) for number in range(20_000)) / 20_000
    assert abs(share - 0.1) < 3 * (0.1 * 0.9 / 20_000) ** 0.5


def test_a_folder_without_subfolders_has_no_labels(make_folder):
    source = ImageFolder(make_folder({".": 30}), "train", validation_fraction=0.5)
    assert source.class_names == () and source[0].label == -1


def test_hidden_and_other_files_are_ignored(make_folder):
    root = make_folder({"train/a": 1, "val/a": 1})
    (root / "train" / "a" / ".hidden.png").touch()
    (root / "train" / "a" / "notes.txt").touch()
    (root / "train" / ".cache").mkdir()
    assert names(ImageFolder(root, "train")) == ["train/a/000.png"]


def test_what_is_ignored_is_counted(make_folder):
    root = make_folder({"train/a": 2, "train/a/deep": 1, "val/a": 1})
    for name in ("a/.hidden.png", "a/notes.txt", "a/more.txt", "a/README", "beside.png", "beside.txt"):
        (root / "train" / name).touch()
    source = ImageFolder(root, "train")
    assert len(source) == 2
    assert source.ignored == {
        "files that end in .txt": 3, "files without an ending": 1, "folders in class folders": 1,
        "hidden files and folders": 1, "images beside the class folders": 1}


def test_flat_splits_are_not_taken_for_classes(make_folder):
    with pytest.raises(ValueError, match="has the folders test, train, which look like splits"):
        ImageFolder(make_folder({"train": 3, "test": 3}), "train")


@pytest.mark.parametrize(("extension", "kind"), [(".avif", "AVIF"), (".jfif", "JPEG")])
def test_less_common_endings_of_images_are_read(make_folder, extension, kind):
    root = make_folder({"train/a": 1, "val/a": 1})
    Image.open(root / "train/a/000.png").save(root / f"train/a/001{extension}", kind)
    source = ImageFolder(root, "train")
    assert names(source) == ["train/a/000.png", f"train/a/001{extension}"]
    assert decode(source[1].image).shape == decode(source[0].image).shape


def test_the_fingerprint_changes_with_the_names_and_the_sizes_of_files(make_folder):
    root = make_folder({"train/a": 2, "val/a": 1})
    before = ImageFolder(root, "train").fingerprint()
    assert ImageFolder(root, "train").fingerprint() == before
    path = root / "train/a/001.png"
    path.write_bytes(path.read_bytes() + b"0")
    bigger = ImageFolder(root, "train").fingerprint()
    path.rename(root / "train/a/002.png")
    assert len({before, bigger, ImageFolder(root, "train").fingerprint()}) == 3


def test_upper_case_extensions_are_images(make_folder):
    root = make_folder({"train/a": 1, "val/a": 1})
    (root / "train" / "a" / "000.png").rename(root / "train" / "a" / "n01_1.JPEG")
    assert names(ImageFolder(root, "train")) == ["train/a/n01_1.JPEG"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist"):
        ImageFolder(tmp_path / "nowhere", "train")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a.tar").touch()
    with pytest.raises(FileNotFoundError, match=r"expected a folder, but .*a\.tar' is a file"):
        ImageFolder(tmp_path / "a.tar", "train")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected images, or subfolders of images, found neither"):
        ImageFolder(tmp_path, "train")


def test_an_empty_class_is_refused(make_folder):
    root = make_folder({"train/a": 1, "val/a": 1})
    (root / "train" / "b").mkdir()
    with pytest.raises(ValueError, match="train/b: no images in this class folder"):
        ImageFolder(root, "train")


def test_a_training_folder_without_validation_folder_is_not_taken_for_a_class(make_folder):
    with pytest.raises(ValueError, match="has the folders train, which look like splits .* Name them train and val"):
        ImageFolder(make_folder({"train/a": 3, "train/b": 3}), "train")


def test_a_validation_class_that_training_lacks_is_refused(make_folder):
    with pytest.raises(ValueError, match="subfolders c are no classes of the training split, which has a"):
        ImageFolder(make_folder({"train/a": 1, "val/a": 1, "val/c": 1}), "validation")


def test_a_split_that_the_hash_leaves_empty_is_refused(make_folder):
    root = make_folder({"a": 1})
    empty_split = "train" if in_validation("a/000.png", 0.5) else "validation"
    with pytest.raises(ValueError, match=f"none of its 1 images falls in the {empty_split} split"):
        ImageFolder(root, empty_split, validation_fraction=0.5)


@pytest.mark.parametrize("fraction", [0, 1, -0.1])
def test_a_validation_fraction_out_of_range_is_refused(tmp_path, fraction):
    with pytest.raises(ValueError, match="validation_fraction: expected a number between 0 and 1"):
        ImageFolder(tmp_path, "train", validation_fraction=fraction)
