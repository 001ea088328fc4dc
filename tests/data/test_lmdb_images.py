"""LMDB databases of image files: what is read, the splits, threads, and what is refused."""
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from vqim.data.decode import decode
from vqim.data.images import Images
from vqim.data.lmdb_images import Lmdb

lmdb = pytest.importorskip("lmdb", reason="pip install 'vqim[lmdb]'")


def key_of(number):
    """As LSUN's: a hash, in no order."""
    return hashlib.sha1(str(number).encode()).hexdigest().encode()


def encoded(image, form):
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, **({"lossless": True} if form == "WEBP" else {}))
    return file.getvalue()


@pytest.fixture
def make_database(tmp_path, emoji):
    """`make_database(name, numbers, form)` writes these emoji into the database `name` and returns its path."""
    def make(name, numbers, form="WEBP"):
        path = tmp_path / name
        with lmdb.open(str(path), map_size=2**24) as database, database.begin(write=True) as transaction:
            for number in numbers:
                transaction.put(key_of(number), encoded(emoji["images"][number], form))
        return path
    return make


def images_of(source):
    return {decode(source[i].image).tobytes() for i in range(len(source))}


@pytest.mark.parametrize("form", ["WEBP", "JPEG", "PNG"])
def test_a_value_is_an_image_files_bytes_in_the_order_of_keys(form, make_database, emoji):
    source = Lmdb(make_database("cat", range(12), form), "train", validation_fraction=1e-6)
    by_key = sorted(range(12), key=key_of)
    assert [source[i].image for i in range(len(source))] == [encoded(emoji["images"][n], form) for n in by_key]
    assert source.class_names == () and source[0].label == -1
    assert source[3].name.endswith(f"cat:{key_of(by_key[3]).decode()}")


def test_the_second_database_is_the_validation_split(make_database, emoji):
    train, validation = make_database("church_train_lmdb", range(5)), make_database("church_val_lmdb", [7, 9])
    both = [Lmdb(train, split, validation_path=validation) for split in ("train", "validation")]
    assert [len(source) for source in both] == [5, 2]
    assert images_of(both[1]) == {emoji["images"][n].tobytes() for n in (7, 9)}


def test_hashes_of_keys_divide_one_database_open_twice_at_once(make_database, emoji):
    path = make_database("cat", range(60))
    train, validation = (Lmdb(path, split, validation_fraction=0.25) for split in ("train", "validation"))
    hashed = {n for n in range(60) if hashlib.sha256(key_of(n).hex().encode()).digest()[0] < 64}  # the first quarter
    assert images_of(validation) == {emoji["images"][n].tobytes() for n in hashed}
    assert images_of(train) == {emoji["images"][n].tobytes() for n in set(range(60)) - hashed}


def test_many_threads_read_what_one_reads(make_database):
    source = Lmdb(make_database("cat", range(50)), "train")
    alone = [source[i].image for i in range(len(source))]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: source[i % len(alone)].image, range(8 * len(alone)))) == 8 * alone


def test_the_pixels_of_a_batch_are_those_of_the_values(make_database, emoji):
    path = make_database("cat", range(40))
    data = Images(source=lambda split: Lmdb(path, split, validation_fraction=0.5), image_size=64)
    (batch,) = data.evaluation(40)
    shown = {image.tobytes() for image in batch["images"][batch["valid"]]}
    assert len(shown) > 10 and shown <= {image.tobytes() for image in emoji["images"][:40]}
    assert np.array_equal(np.unique(batch["labels"][batch["valid"]]), [-1])


def test_an_image_that_is_added_changes_the_fingerprint(make_database):
    first, second = (Lmdb(make_database(name, numbers), "train") for name, numbers in
                     (("a", range(30)), ("b", range(31))))
    assert first.fingerprint() != second.fingerprint()
    assert first.fingerprint() == Lmdb(make_database("c", range(30)), "train").fingerprint()


def test_a_path_without_a_database_is_refused_by_its_argument(make_database, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match="validation_path: .*data.mdb.*folder"):
        Lmdb(make_database("a", range(3)), "validation", validation_path=tmp_path / "folder")


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(ValueError, match="path: expected an LMDB database"):
        Lmdb(tmp_path, "train")


def test_a_split_without_images_is_refused(make_database):
    with pytest.raises(ValueError, match="validation split has none"):
        Lmdb(make_database("a", [0]), "validation", validation_fraction=1e-9)
