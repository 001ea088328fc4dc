"""Loss terms as components: which are computed, with which weights, and whose networks they look through."""
import functools
import math

import numpy as np
import pytest
import torch

from tests.support.steps import RUNTIME, make_state, run_step
from vqim.contracts.context import Context
from vqim.contracts.learning import Learner
from vqim.frozen.alexnet import AlexNet
from vqim.frozen.lpips import Lpips
from vqim.frozen.vgg16 import VGG16
from vqim.nn.module import apply
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.state.leaf import select
from vqim.third_party import lpips as pretrained
from vqim.tokenizer.model import Reconstruction
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.terms import L1, L2, LogitLaplace, Perceptual
from vqim.training.gradient_task import GradientTask
from vqim.training.state import start


class Darkness:
    """A term that counts how often it is computed, and keeps what it is given."""

    name = "darkness"

    def __init__(self, weight, frozen=None):
        self.weight, self.frozen = weight, frozen or {}
        self.calls = 0

    def __call__(self, images_BCHW, reconstruction, frozen, context):
        self.calls += 1
        self.images_BCHW, self.reconstruction, self.frozen_arrays = images_BCHW, reconstruction, frozen
        return (1 - reconstruction.mean_BCHW).mean()


@pytest.fixture
def make_task(make_tokenizer):
    """`make_task(terms)`: a task with a tiny tokenizer."""
    def make(*terms):
        learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(3e-3))
        return GradientTask(TokenizerObjective(make_tokenizer(), learner, terms))
    return make


@pytest.fixture(name="batch")
def batch_of_emoji(emoji):
    return RUNTIME.put({"images": emoji[:4], "labels": np.zeros(4, np.int32)})


def first_step(task, batch, step=0):
    """A fresh state, and the metrics of one step that it has made."""
    state = make_state(task)
    return state, run_step(task, state, batch, step)


def test_the_default_weights_are_the_papers():
    assert (L2().weight, LogitLaplace().weight, Perceptual().weight) == (1.0, 0.1, 0.1)


def test_l1_is_vqgans_of_images_in_minus_one_to_one(make_task, batch):
    # Its default weight makes up for images in [0, 1].
    images, means = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    found = L1()(images, Reconstruction(means), {}, Context(RUNTIME.kernels))
    expected = ((2 * images.double() - 1) - (2 * means.double() - 1)).abs().mean()
    assert L1().weight * found.item() == pytest.approx(expected.item(), rel=1e-6)
    task = make_task(L1())
    assert run_step(task, make_state(task), batch)["loss/l1"].item() > 0.05


@pytest.mark.parametrize("term", [L1, L2, LogitLaplace, Perceptual])
@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_a_weight_below_zero_is_refused(term, weight):
    with pytest.raises(ValueError, match=f"weight must be at least 0, or a schedule; got {weight}"):
        term(weight)


def test_a_term_of_weight_0_is_not_computed(make_task, batch):
    term = Darkness(0)
    task = make_task(L2(), term)
    _, metrics = first_step(task, batch)
    assert term.calls == 0 and "loss/darkness" not in metrics
    assert "weight/darkness" not in task.host_scalars(0)


def test_a_term_of_weight_0_needs_no_networks(make_task):
    task = make_task(L2(), Perceptual(0.0))
    assert not any(name.startswith("frozen/") for name in task.init_spec())


def test_a_term_whose_schedule_is_at_0_is_computed_and_counts_nothing(make_task, batch):
    term = Darkness(lambda step: 0.0)
    _, metrics = first_step(make_task(L2(), term), batch)
    _, expected = first_step(make_task(L2()), batch)
    assert term.calls == 1 and metrics["loss/darkness"].item() > 0.1
    assert metrics["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-6)
    assert metrics["gradient_norm"].item() == pytest.approx(expected["gradient_norm"].item(), rel=1e-6)


def test_a_term_counts_with_the_weight_that_its_schedule_has_at_the_step(make_task, batch):
    task = make_task(L2(), Darkness(lambda step: 0.5 * step))
    _, metrics = first_step(task, batch, step=3)
    expected = (metrics["loss/l2"] + 1.5 * metrics["loss/darkness"] + metrics["loss/codebook"]
                + metrics["loss/commitment"])
    assert metrics["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_two_terms_of_one_name_are_refused(make_task):
    with pytest.raises(ValueError, match=r"terms must have names that differ, got \['l2', 'perceptual', 'l2'\]"):
        make_task(L2(), Perceptual(), L2(0.5))


def test_a_distribution_is_asked_of_a_decoder_that_gives_none_in_vain():
    images = torch.rand(1, 3, 4, 4)
    with pytest.raises(ValueError, match="terms has LogitLaplace, but the decoder gives no distribution"):
        LogitLaplace()(images, Reconstruction(images), {}, Context(RUNTIME.kernels))


def test_the_perceptual_term_is_lpips_of_the_batch(make_task, batch):
    task = make_task(L2(), Perceptual(0.7))
    state, metrics = first_step(task, batch)
    images = batch["images"].permute(0, 3, 1, 2) / 255
    model, context = task.objective.tokenizer, Context(RUNTIME.kernels)
    initial = select(start(task.init_spec(), 0, RUNTIME).arrays, "params/tokenizer/")
    with torch.no_grad():
        _, made = apply(model.forward, initial, images, context)
        expected = Lpips(VGG16())(select(state, "frozen/lpips/"), images, made.mean_BCHW, context=context)
    assert metrics["loss/perceptual"].item() == pytest.approx(expected.mean().item(), rel=1e-4)
    others = metrics["loss/codebook"] + metrics["loss/commitment"] + metrics["loss/l2"]
    assert metrics["loss"].item() == pytest.approx((others + 0.7 * metrics["loss/perceptual"]).item(), rel=1e-5)


def test_a_step_leaves_the_networks_of_its_terms_as_they_are(make_task, batch):
    task = make_task(L2(), Perceptual())
    state, _ = first_step(task, batch)
    fresh = start(task.init_spec(), 0, RUNTIME).arrays
    frozen = [name for name in fresh if name.startswith("frozen/lpips/")]
    assert len(frozen) == 2 * 13 + 2 + 5 and all(torch.equal(state[name], fresh[name]) for name in frozen)


def test_without_a_term_that_needs_them_there_are_no_networks(make_task):
    assert not any(name.startswith("frozen/") for name in make_task(L2(), LogitLaplace()).init_spec())


def test_terms_with_equal_networks_share_one_set_of_arrays(make_task, batch):
    term = Darkness(0.1, {"lpips": Lpips(VGG16(num_strips=4))})  # the same values, computed in another way
    task = make_task(L2(), Perceptual(), term)
    networks = {name.split("/")[1] for name in task.init_spec() if name.startswith("frozen/")}
    assert networks == {"lpips"}
    state, _ = first_step(task, batch)
    shared = select(state, "frozen/lpips/")
    assert term.frozen_arrays["lpips"].keys() == shared.keys()
    assert all(array is shared[name] for name, array in term.frozen_arrays["lpips"].items())


def test_terms_with_networks_of_different_names_have_both(make_task, batch):
    term = Darkness(0.1, {"alexnet": AlexNet()})
    task = make_task(L2(), Perceptual(), term)
    networks = {name.split("/")[1] for name in task.init_spec() if name.startswith("frozen/")}
    assert networks == {"alexnet", "lpips"}
    first_step(task, batch)
    assert term.frozen_arrays.keys() == {"alexnet"} and "conv5_1/bias_O" in term.frozen_arrays["alexnet"]


def test_different_networks_under_one_name_are_refused(make_task, tmp_path):
    (tmp_path / "vgg16.ckpt").symlink_to(pretrained.find_weights("vgg16"))
    other = Darkness(0.1, {"lpips": Lpips(VGG16(str(tmp_path / "vgg16.ckpt")))})
    with pytest.raises(ValueError, match="term darkness: the name 'lpips' is taken by another frozen network, Lpips"):
        make_task(Perceptual(), other)


def test_a_network_of_a_term_of_weight_0_takes_no_name(make_task, tmp_path):
    (tmp_path / "vgg16.ckpt").symlink_to(pretrained.find_weights("vgg16"))
    other = Darkness(0, {"lpips": Lpips(VGG16(str(tmp_path / "vgg16.ckpt")))})
    assert make_task(Perceptual(), other).objective.frozen == {"lpips": Lpips()}


def test_a_term_sees_the_decoders_distribution_and_the_images_in_0_to_1(make_task, batch):
    term = Darkness(1.0)
    first_step(make_task(term), batch)
    assert torch.equal(term.images_BCHW, batch["images"].permute(0, 3, 1, 2).float() / 255)
    for array in (term.reconstruction.location_BCHW, term.reconstruction.log_scale_BCHW):
        assert array.shape == term.images_BCHW.shape and array.requires_grad
