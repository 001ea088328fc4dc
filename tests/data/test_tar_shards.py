"""Tar shards: both layouts against a folder and against what was written, and archives that make no sense."""
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from vqim.data.folder import ImageFolder
from vqim.data.images import Images
from vqim.data.tar_shards import TarShards


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    """Two shards of the training split and one of the validation split, numbered as WebDataset does."""
    labelled = [{f"{key}.png": png(key), f"{key}.cls": str(key % 3).encode(), f"{key}.json": b"{}"} for key in range(7)]
    for name, keys in (("train-0000", range(3)), ("train-0001", range(3, 5)), ("val-0000", range(5, 7))):
        write(tmp_path / f"{name}.tar", {member: data for key in keys for member, data in labelled[key].items()})
    return tmp_path


def test_a_folder_packed_as_it_is_has_the_same_images_and_classes(make_folder, tmp_path):
    root = make_folder({"train/zebra": 2, "train/ant": 1, "val/zebra": 1, "val/ant": 1})
    for split, name in (("train", "train"), ("validation", "val")):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for path in sorted((root / name).rglob("*.png")):
                tar.add(path, f"./{path.relative_to(root)}")
        packed, folder = TarShards(tmp_path, split), ImageFolder(root, split)
        assert packed.class_names == folder.class_names == ("ant", "zebra") and len(packed) == len(folder)
        for i in range(len(folder)):
            assert (packed[i].image, packed[i].label) == (folder[i].image, folder[i].label)


def test_images_beside_their_numbers_are_labelled_by_them(shards):
    source = TarShards(shards, "train", num_classes=3)
    assert [source[i].label for i in range(5)] == [0, 1, 2, 0, 1] and source.class_names == ("0", "1", "2")
    assert [source[i].image for i in range(5)] == [png(key) for key in range(5)]
    assert source[4].name == f"{shards}/train-0001.tar:4.png"
    assert source.ignored == {"members that end in .json": 5}
    assert TarShards(shards, "validation", class_names=("a", "b", "c")).class_names == ("a", "b", "c")


def test_batches_come_from_all_shards(shards):
    images = Images(lambda split: TarShards(shards, split, num_classes=3), image_size=8)
    assert (images.num_examples("train"), images.num_examples("validation")) == (5, 2)
    batch = next(iter(images.evaluation(2)))
    expected = np.stack([np.asarray(Image.open(io.BytesIO(png(key)))) for key in (5, 6)])
    np.testing.assert_array_equal(batch["images"], expected)
    assert batch["labels"].tolist() == [2, 0]


def test_images_without_folders_and_numbers_have_no_classes(tmp_path):
    write(tmp_path / "train.tar", {"b.png": png(1), "a.JPG": b"jpeg", "._a.jpg": b"", "readme": b""})
    source = TarShards(tmp_path, "train")
    assert source.class_names == () and [source[i].label for i in range(2)] == [-1, -1]
    assert source.ignored == {"hidden files": 1, "members without an ending": 1}


def test_a_fingerprint_is_that_of_names_sizes_and_labels(shards):
    first = TarShards(shards, "train", num_classes=3).fingerprint()
    assert TarShards(shards, "train", num_classes=3).fingerprint() == first
    write(shards / "train-0001.tar", {"3.png": png(3), "3.cls": b"1", "4.png": png(4), "4.cls": b"1"})
    assert TarShards(shards, "train", num_classes=3).fingerprint() != first


@pytest.mark.parametrize(("members", "settings", "message"), [
    ({"0.png": b"x", "0.cls": b"0", "1.png": b"x"}, {"num_classes": 2}, "1 of 2 images .* have no .cls member beside"),
    ({"0.png": b"x", "0.cls": b"2"}, {"num_classes": 2}, "expected labels from 0 to 1"),
    ({"0.png": b"x", "0.cls": b"cat"}, {"num_classes": 2}, "0.cls: expected a class's number in digits, got b'cat'"),
    ({"0.png": b"x", "0.cls": b"0"}, {}, "num_classes: must be given for shards"),
    ({"a/0.png": b"x"}, {"num_classes": 2}, "class_names, num_classes: are for shards with .cls members"),
    ({"a/0.png": b"x", "1.png": b"x"}, {}, "have images in class folders and beside them, such as 1.png"),
    ({"readme.txt": b"x"}, {}, "expected images in .*train.tar"),
])
def test_members_that_make_no_sense_are_refused(tmp_path, members, settings, message):
    write(tmp_path / "train.tar", members)
    with pytest.raises(ValueError, match=message):
        TarShards(tmp_path, "train", **settings)


def test_archives_that_are_compressed_or_cut_off_are_refused(shards):
    whole = (shards / "train-0000.tar").read_bytes()
    with tarfile.open(shards / "train-0000.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(ValueError, match="expected a tar archive that is whole and not compressed"):
        TarShards(shards, "train", num_classes=3)
    (shards / "train-0000.tar").write_bytes(whole[:600])
    with pytest.raises(ValueError, match=r"train-0000.tar: expected a tar archive .*unexpected end of data"):
        TarShards(shards, "train", num_classes=3)


def test_missing_archives_are_refused_by_their_pattern(shards):
    with pytest.raises(FileNotFoundError, match=r"expected archives imagenet-\*.tar of the train split"):
        TarShards(shards, "train", train="imagenet-*.tar", num_classes=3)
