"""FID and its like as metrics of a pass: values, names, references, what is refused; VGG16 is the network at hand."""
import json
import math

import numpy as np
import pytest
import torch

from vqim.contracts.context import Context
from vqim.contracts.evaluation import About, Items
from vqim.evaluation.extractors import Extracted, VGG16Features
from vqim.evaluation.feature_sets import FeatureSet
from vqim.evaluation.image_metrics import Distances
from vqim.evaluation.passes import Reconstructions, evaluate
from vqim.evaluation.samples import Samples
from vqim.evaluation.set_metrics import FeatureDistances, WaveletDistance
from vqim.evaluation.statistics_files import read_statistics, write_statistics
from vqim.frozen.vgg16 import VGG16
from vqim.runtime.torch import TorchKernels, TorchRuntime
from vqim.training.state import start

RUNTIME, CONTEXT = TorchRuntime(), Context(TorchKernels())
VGG = VGG16Features(VGG16())
ALL = ("fid", "kid", "precision", "recall", "density", "coverage")


@pytest.fixture(scope="module")
def vgg_arrays():
    return {"vgg16": start(VGG.network.init_spec(), 0, RUNTIME).arrays}


def measure(evaluator, run, data):
    return evaluate(evaluator.begin(run[0], data, run[1], RUNTIME))


def numbers(results):
    return {name: value for name, value in results.items() if isinstance(value, float)}


def protocol(results, name):
    return json.loads(results[f"protocol/{name}"])


def floats(images_BHWC):
    return torch.from_numpy(images_BHWC.transpose(0, 3, 1, 2).astype(np.float32) / 255)


def slow_frechet(a, b):
    """The formula with NumPy's eigenvalues of the product, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    covariances = np.cov(a.T), np.cov(b.T)
    overlap = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(covariances[0] + covariances[1]) - 2 * overlap


def tallied(metric, images, arrays, originals=None, batch_size=50, **fields):
    """What the metric says of images and their originals, without a pass."""
    tally = metric.tally(About("reconstructions", len(images), None, 0))
    for first in range(0, len(images), batch_size):
        rows = slice(first, first + batch_size)
        items = Items(torch.ones(len(images[rows]), dtype=torch.bool), images_BCHW=images[rows],
                      originals_BCHW=None if originals is None else originals[rows], **fields)
        with torch.no_grad():
            observed = metric.observe(items, arrays, CONTEXT)
        tally.add({name: value.numpy() for name, value in observed.items()}, items.valid_B.numpy())
    return tally.result()


def write_vgg_file(folder, images_BHWC, vgg_arrays, **said):
    """A file of statistics of images in VGG16."""
    found = FeatureSet(len(images_BHWC), ALL)
    with torch.no_grad():
        found.add(VGG(vgg_arrays, floats(images_BHWC), CONTEXT).pooled_BC.numpy())
    write_statistics(folder / "reference.npz", found.statistics(), VGG.describe() | said)
    return str(folder / "reference.npz")


def test_vgg_fd_is_the_distance_of_the_networks_mean_features(data, vgg_arrays):
    images, originals = floats(data.images[::-1][:100].copy()), floats(data.images[:100])
    found = tallied(FeatureDistances(VGG, ("fid",)), images, vgg_arrays, originals)
    with torch.no_grad():
        features = [VGG16()(vgg_arrays["vgg16"], x, context=CONTEXT)[-1].mean((2, 3)).numpy()
                    for x in (images, originals)]
    # 100 images and 512 features: the eigenvalues of a singular product lose half of their digits.
    assert numbers(found) == {"vgg_fd": pytest.approx(slow_frechet(*features), rel=1e-4)}


@pytest.mark.parametrize("batch_size", [7, 50])
def test_measures_of_a_pass_do_not_depend_on_the_batch_size(tokenizer_run, data, batch_size):
    def metrics():
        return [FeatureDistances(VGG, ALL), WaveletDistance()]
    run = tokenizer_run()
    expected = measure(Reconstructions(metrics(), 16, split="train"), run, data)
    found = measure(Reconstructions(metrics(), batch_size, split="train"), run, data)
    assert found.keys() == expected.keys()
    assert numbers(found) == pytest.approx(numbers(expected), rel=1e-4, abs=1e-9)
    assert found["evaluation/fwd"] == pytest.approx(expected["evaluation/fwd"], rel=1e-12)
    assert found["protocol/vgg_fd"] == expected["protocol/vgg_fd"]


def test_a_tally_of_given_features_is_the_same_for_any_batch_size_to_1e_minus_9(data, vgg_arrays):
    metric, originals = FeatureDistances(VGG, ALL), floats(data.images[:120])
    with torch.no_grad():
        observed = metric.observe(Items(torch.ones(120, dtype=torch.bool), images_BCHW=originals.flip(3),
                                        originals_BCHW=originals), vgg_arrays, CONTEXT)
    results = []
    for batch_size in (1, 13, 120):
        tally = metric.tally(About("reconstructions", 120, None, 0))
        for first in range(0, 120, batch_size):
            rows = {name: value[first:first + batch_size].numpy() for name, value in observed.items()}
            tally.add(rows, np.ones(len(rows["images/pooled"]), bool))
        results.append(numbers(tally.result()))
    assert results[0].keys() == {"vgg_fd", "vgg_kid", "vgg_kid_std", "vgg_precision", "vgg_recall", "vgg_density",
                                 "vgg_coverage"}
    assert results[1] == pytest.approx(results[0], rel=1e-9) and results[2] == pytest.approx(results[0], rel=1e-9)


def test_images_that_are_their_originals_are_at_distance_0_and_cover_them(data, vgg_arrays):
    originals = floats(data.images[:60])
    found = tallied(FeatureDistances(VGG, ALL), originals, vgg_arrays, originals)
    assert found["vgg_fd"] < 1e-9 and (found["vgg_precision"], found["vgg_recall"], found["vgg_coverage"]) == (1, 1, 1)
    assert tallied(WaveletDistance(), originals, {}, originals)["fwd"] < 1e-12


def test_a_protocol_says_network_checksum_reference_split_and_count(tokenizer_run, data):
    metrics = [FeatureDistances(VGG, ("fid",)), WaveletDistance()]
    results = measure(Reconstructions(metrics, 25, split="train"), tokenizer_run(), data)
    said = protocol(results, "vgg_fd")
    assert said["measure"] == "vgg_fd" and said["extractor"].startswith("VGG16") and "sha256 " in said["weights"]
    assert said["compares"] == "reconstructions with their own originals"
    assert (said["split"], said["count"], said["reference count"]) == ("train", "50", "50")
    assert (said["image size"], said["rounding"]) == ("16x16", "8 bits")
    assert said["reference"] == protocol(results, "fwd")["reference"]  # the same images, whatever the metric
    other = measure(Reconstructions([WaveletDistance()], 64), tokenizer_run(), data)
    assert protocol(other, "fwd")["reference"] != said["reference"]


@pytest.mark.parametrize("num_images", [4, 20])
def test_samples_are_compared_with_the_images_of_a_split(prior_run, data, num_images):
    # Fewer samples than the 50 real images, and more: 3 classes.
    metrics = [FeatureDistances(VGG, ("fid",)), WaveletDistance()]
    run = prior_run()
    results = measure(Samples(metrics, num_images, 25, reference_split="train"), run, data)
    said = json.loads(results["samples/protocol/vgg_fd"])
    assert said["compares"] == "samples with real images of a split"
    assert (said["count"], said["reference count"]) == (str(3 * num_images), "50")
    assert said["labels"] == f"{num_images} of each of 3 classes" and "temperature=1.0" in said["sampler"]
    smaller = measure(Samples(metrics, num_images, 8, reference_split="train"), run, data)
    assert numbers(smaller) == pytest.approx(numbers(results), rel=1e-4)


def test_samples_have_the_same_distance_from_a_file_of_the_splits_statistics(prior_run, data, vgg_arrays, tmp_path):
    run, path = prior_run(), write_vgg_file(tmp_path, data.images[:50], vgg_arrays)
    expected = measure(Samples([FeatureDistances(VGG, ALL)], 20, 30, reference_split="train"), run, data)
    found = measure(Samples([FeatureDistances(VGG, ALL, reference=path)], 20, 30), run, data)
    assert numbers(found) == pytest.approx(numbers(expected), rel=1e-4, abs=1e-9)
    assert path in json.loads(found["samples/protocol/vgg_fd"])["reference"]


def test_reconstructions_against_a_generation_reference_are_refused(tokenizer_run, data, tmp_path, vgg_arrays):
    path = write_vgg_file(tmp_path, data.images[:9], vgg_arrays)
    with pytest.raises(ValueError, match="A reconstruction FID compares with these"):
        measure(Reconstructions([FeatureDistances(VGG, ("fid",), reference=path)], 64), tokenizer_run(), data)


def test_a_reference_of_another_network_is_refused(data, vgg_arrays, tmp_path):
    path = write_vgg_file(tmp_path, data.images[:9], vgg_arrays, weights="sha256 0123456789abcdef")
    with pytest.raises(ValueError, match="features of sha256 0123456789abcdef, the extractor's are of sha256"):
        FeatureDistances(VGG, ("fid",), reference=path)


def test_a_reference_that_lacks_what_a_measure_needs_is_refused_before_work(data, vgg_arrays, tmp_path):
    found = FeatureSet(8, ("fid",))
    found.add(np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32))
    write_statistics(tmp_path / "mean.npz", found.statistics(), VGG.describe())
    with pytest.raises(ValueError, match="mean.npz does not hold what kid, precision need; leave them out of"):
        FeatureDistances(VGG, ["fid", "kid", "precision"], str(tmp_path / "mean.npz"))
    FeatureDistances(VGG, ["fid"], str(tmp_path / "mean.npz"))


def test_a_reference_of_another_size_is_refused(data, vgg_arrays, tmp_path):
    images_BHWC = next(iter(data.evaluation(8)))["images"]
    path = write_vgg_file(tmp_path, images_BHWC, vgg_arrays, **{"image size": "64x64"})
    with pytest.raises(ValueError, match=r"is of images of 64x64, these have \d+x\d+: images of different sizes"):
        tallied(FeatureDistances(VGG, ["fid"], path), floats(images_BHWC), vgg_arrays)


def test_too_few_images_for_a_measure_are_refused_before_work(data):
    with pytest.raises(ValueError, match="measures: vgg_density needs at least 6 images, got 5. Leave out what so few"):
        FeatureDistances(VGG, ["fid", "density"]).tally(About("reconstructions", 5, None, 0))


def test_images_that_cannot_be_decoded_are_left_out_and_not_counted(data, vgg_arrays):
    images_BCHW = floats(next(iter(data.evaluation(8)))["images"])
    metric = FeatureDistances(VGG, ["fid", "kid"])
    found = []
    for valid in (range(8), range(7)):
        tally = metric.tally(About("reconstructions", 8, None, 0))
        items = Items(torch.ones(8, dtype=torch.bool), images_BCHW=images_BCHW, originals_BCHW=images_BCHW.flip(3))
        with torch.no_grad():
            observed = {name: value.numpy() for name, value in metric.observe(items, vgg_arrays, CONTEXT).items()}
        tally.add(observed, np.isin(np.arange(8), valid))
        found.append(tally.result())
    assert [protocol(results, "vgg_fd")["count"] for results in found] == ["8", "7"]
    assert np.isfinite(found[1]["vgg_fd"]) and found[1]["vgg_fd"] != found[0]["vgg_fd"]


class OfLogits:
    """An extractor with the Inception score alone, of logits that are the pixels' means."""

    names, frozen = {"inception_score": "some_score"}, {}

    def __call__(self, frozen, images_BCHW, context):
        return Extracted(pooled_BC=images_BCHW.mean((2, 3)), logits_BY=20 * images_BCHW.mean((2, 3)))

    def describe(self):
        return {"extractor": "means", "weights": "none"}


@pytest.mark.parametrize("valid", [True, False])
def test_a_score_of_images_alone_needs_no_real_ones_but_all_of_its_own(valid):
    metric = FeatureDistances(OfLogits(), ("inception_score",))
    tally = metric.tally(About("samples", 30, None, 0))
    items = Items(torch.ones(30, dtype=torch.bool), images_BCHW=torch.rand(30, 3, 8, 8))
    observed = {name: value.numpy() for name, value in metric.observe(items, {}, CONTEXT).items()}
    tally.add(observed, np.arange(30) != (99 if valid else 7))
    results = tally.result()
    if not valid:
        assert results == {}
        return
    p_BY = torch.softmax(20 * items.images_BCHW.mean((2, 3)).double(), 1)
    splits = [[(p * (p / p_3Y.mean(0)).log()).sum().item() for p in p_3Y] for p_3Y in p_BY.split(3)]
    assert results["some_score"] == pytest.approx(np.mean([math.exp(np.mean(split)) for split in splits]), rel=1e-4)
    assert protocol(results, "some_score")["compares"] == "nothing, it is of samples alone"


def test_adms_reference_is_refused_for_another_network_than_inception(tmp_path):
    np.savez(tmp_path / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048), mu_s=np.zeros(2023), sigma_s=np.eye(2023))
    statistics, said = read_statistics(tmp_path / "adm.npz")
    assert said == {} and len(statistics.pooled.mean_D) == 2048 and len(statistics.spatial.mean_D) == 2023
    with pytest.raises(ValueError, match="does not say which network its features are of"):
        FeatureDistances(VGG, ("fid",), reference=str(tmp_path / "adm.npz"))


def test_samples_without_a_reference_are_refused(prior_run, data):
    for metric in (FeatureDistances(VGG, ("fid",)), WaveletDistance()):
        with pytest.raises(ValueError, match=r"set evaluation\.Samples\.reference_split"):
            measure(Samples([metric], 4, 8), prior_run(), data)


def test_samples_of_a_run_over_cached_tokens_need_a_file(prior_run, data):
    class Tokens(type(data)):
        def evaluation(self, *args, **kwargs):
            for batch in super().evaluation(*args, **kwargs):
                yield {"tokens": np.zeros((len(batch["valid"]), 16, 1), np.int64), "valid": batch["valid"]}

    with pytest.raises(ValueError, match="reference_split: this run's data are tokens"):
        measure(Samples([WaveletDistance()], 4, 8, reference_split="validation"), prior_run(), Tokens())


def test_a_measure_that_the_network_lacks_is_refused():
    with pytest.raises(ValueError, match="measures: VGG16Features has fid, kid, .* got 'inception_score'"):
        FeatureDistances(VGG, ("fid", "inception_score"))


def test_images_that_are_not_finite_are_refused(data, vgg_arrays):
    broken = floats(data.images[:60])
    broken[5] = np.nan
    with pytest.raises(ValueError, match="features must be finite; some image gives NaN"):
        tallied(FeatureDistances(VGG, ("fid",)), broken, vgg_arrays, floats(data.images[:60]))


def test_grey_images_and_identical_images_have_a_distance(data, vgg_arrays):
    originals = floats(data.images[:60])
    for images in (originals.mean(1, keepdim=True).expand(-1, 3, -1, -1), originals[:1].expand(60, -1, -1, -1)):
        for metric, name in ((FeatureDistances(VGG, ("fid",)), "vgg_fd"), (WaveletDistance(), "fwd")):
            assert tallied(metric, images, vgg_arrays, originals)[name] > 0.01


def test_references_are_no_pairs_for_the_distances_of_reconstructions(prior_run, data):
    with pytest.raises(ValueError, match="Distances needs originals_BCHW"):
        measure(Samples([Distances()], 4, 8, reference_split="validation"), prior_run(), data)
