"""Metrics of images beside the measures that they average, and what is shown of a pass."""
import hashlib
import json
import pathlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vqim.registry.components  # noqa: F401  gin knows the components
from vqim.contracts.context import Context
from vqim.contracts.evaluation import About, Items
from vqim.evaluation import distances
from vqim.evaluation.image_metrics import Distances, Lpips, ShownImages, split_shown
from vqim.evaluation.passes import Predictions, Reconstructions, evaluate
from vqim.frozen.alexnet import AlexNet
from vqim.frozen.lpips import Lpips as LpipsNetwork
from vqim.nn.module import apply
from vqim.registry.config import load
from vqim.runtime.torch import TorchRuntime
from vqim.state.leaf import select
from vqim.tokenizer.losses import logit_laplace
from vqim.tokenizer.model import images_to_float
from vqim.training.state import start

RUNTIME = TorchRuntime()
CONTEXT = Context(RUNTIME.kernels)


def measure(evaluator, run, data):
    task, state = run
    return evaluate(evaluator.begin(task, data, state, RUNTIME))


def numbers(results):
    return {name: value for name, value in results.items() if isinstance(value, float)}


def test_distances_are_means_over_images_and_8_bit_reconstructions(tokenizer_run, data):
    task, state = run = tokenizer_run()
    results = measure(Reconstructions([Distances()], batch_size=64), run, data)
    images = images_to_float(torch.from_numpy(data.images))
    _, reconstruction = apply(
        task.objective.tokenizer.forward, select(state, "params/tokenizer/"), images, CONTEXT)
    rounded = (reconstruction.mean_BCHW.clamp(0, 1) * 255).round() / 255
    for name in ("psnr", "ssim", "l1", "l2"):
        expected = getattr(distances, name)(images, rounded).double().mean().item()
        assert results[f"evaluation/{name}"] == pytest.approx(expected, rel=1e-5), name
    nats = logit_laplace(images, reconstruction.location_BCHW, reconstruction.log_scale_BCHW).double().mean().item()
    assert results["evaluation/logit_laplace"] == pytest.approx(nats, rel=1e-5)
    energies = [distances.gradient_energy(pictures).double().sum().item() for pictures in (rounded, images)]
    assert results["evaluation/sharpness"] == pytest.approx(energies[0] / energies[1], rel=1e-5)
    assert numbers(results).keys() == {
        f"evaluation/{name}" for name in ("psnr", "ssim", "l1", "l2", "logit_laplace", "sharpness")}


def test_without_a_distribution_there_is_no_logit_laplace(prior_run, data):
    results = measure(Predictions([Distances()], batch_size=100), prior_run(), data)
    assert numbers(results).keys() == {f"evaluation/{name}" for name in ("psnr", "ssim", "l1", "l2", "sharpness")}


def test_flat_images_are_as_sharp_as_flat_originals():
    metric, flat = Distances(), torch.full((2, 3, 16, 16), 0.5)
    tally = metric.tally(About("reconstructions", 2, None, 0))
    items = Items(torch.ones(2, dtype=torch.bool), originals_BCHW=flat, images_BCHW=flat)
    tally.add({name: value.numpy() for name, value in metric.observe(items, {}, CONTEXT).items()}, np.ones(2, bool))
    assert tally.result()["sharpness"] == 1.0 and tally.result()["psnr"] == pytest.approx(100)


def test_lpips_on_alexnet_is_the_mean_distance_of_images_to_8_bit_reconstructions():
    experiment = load(["gin/debug/tokenizer_tiny.gin"], ["IMAGE_SIZE = 32"], []).call("train")
    task, network = experiment.task, LpipsNetwork(AlexNet())
    arrays = start(task.init_spec(), 0, RUNTIME).arrays
    weights = start(network.init_spec(), 0, RUNTIME).arrays
    measured = measure(Reconstructions([Lpips()], batch_size=96), (task, arrays), experiment.data)
    values = []
    with torch.no_grad():
        for batch in experiment.data.evaluation(10, process_index=0, process_count=1):
            images_BCHW = images_to_float(torch.from_numpy(batch["images"]))
            _, reconstruction = apply(
                task.objective.tokenizer.forward, select(arrays, "params/tokenizer/"), images_BCHW, CONTEXT)
            rounded_BCHW = (reconstruction.mean_BCHW.clamp(0, 1) * 255).round() / 255
            values.append(network(weights, images_BCHW, rounded_BCHW, context=CONTEXT).numpy()[batch["valid"]])
    assert measured["evaluation/lpips_alexnet"] == pytest.approx(np.concatenate(values).mean(), rel=1e-4)
    said = json.loads(measured["protocol/lpips_alexnet"])
    digest = hashlib.sha256(pathlib.Path(AlexNet().weights_file).read_bytes()).hexdigest()[:16]
    assert said["extractor"].startswith("LPIPS 0.1 on AlexNet") and said["weights"] == f"sha256 {digest}"


def shown(num_items, num_shown, batch_size, kinds):
    """Runs the metric over images that hold their number, the originals 100 more."""
    metric, batches = ShownImages(num_shown), range(0, num_items, batch_size)
    tally = metric.tally(About("somewhere", num_items, None, 0))
    for start_of_batch in batches:
        numbers = torch.arange(start_of_batch, start_of_batch + batch_size)
        valid = numbers < num_items
        images = (torch.where(valid, numbers, 99) / 255)[:, None, None, None].expand(-1, 3, 2, 2)
        items = Items(valid, images_BCHW=images, originals_BCHW=images + 100 / 255 if "originals" in kinds else None)
        observed = metric.observe(items, {}, CONTEXT)
        tally.add({name: value.numpy() for name, value in observed.items()}, valid.numpy())
    pictures = tally.result()["images/somewhere"]
    assert pictures.dtype == np.uint8 and pictures.shape[1:] == (2, 2, 3)
    return pictures[:, 0, 0, 0].tolist()


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 13))
def test_images_are_evenly_spaced_over_the_pass_whatever_the_batches(num_items, num_shown, batch_size):
    stride = max(1, num_items // num_shown)
    expected = list(range(0, num_items, stride))[:num_shown]
    assert shown(num_items, num_shown, batch_size, {"images"}) == expected
    assert len(expected) == min(num_shown, num_items)


def test_rows_of_eight_originals_lie_above_those_of_their_images():
    pictures = shown(11, 11, 4, {"images", "originals"})
    assert pictures == [*range(100, 108), *range(8), *range(108, 111), *range(8, 11)]


@pytest.mark.parametrize("count", [1, 5, 8, 11, 16])
def test_originals_and_images_are_found_again_in_what_is_shown(count):
    originals, images = split_shown(np.array(shown(count, count, 4, {"images", "originals"})))
    assert (originals.tolist(), images.tolist()) == ([*range(100, 100 + count)], [*range(count)])


def test_nothing_to_show_is_an_empty_split():
    tally = ShownImages().tally(About("reconstructions", 0, None, 0))
    with pytest.raises(ValueError, match="there is no image to show: is the split empty"):
        tally.result()


def test_no_image_is_no_number_of_images():
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        ShownImages(0)
