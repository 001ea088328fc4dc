"""The adversary of a tokenizer: when which term is there, with which weight, and what the steps show and cost."""
import math

import pytest
import torch
import torch.nn.functional as F

from tests.support.steps import RUNTIME, run_step
from tests.tokenizer.discriminator.steps import make_state
from tests.tokenizer.small_discriminator import SmallDiscriminator
from vqim.contracts.context import Context
from vqim.nn.module import apply
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import WarmupCosine
from vqim.runtime.meta import step_flops
from vqim.state.leaf import select
from vqim.tokenizer.discriminator.adversary import Adversary
from vqim.tokenizer.discriminator.stylegan2 import StyleGAN2Discriminator
from vqim.tokenizer.losses import logit_laplace
from vqim.training.gradient_task import GradientTask

LAST_LAYER = "decoder/head/contract/kernel_IO"


def test_the_defaults_are_the_papers_and_stylegan2s():
    defaults = Adversary.__init__.__kwdefaults__
    assert (defaults["weight"], defaults["loss"]) == (0.1, "non_saturating")
    assert (defaults["r1_weight"], defaults["r1_every"], defaults["start_step"]) == (10.0, 16, 0)
    assert defaults["lecam_weight"] == 0.0 and defaults["adaptive_layer"] is None


def test_r1_is_part_of_every_nth_step_from_the_adversarial_start_on(make_task):
    objective = make_task(start_step=3, r1_every=4).objective
    assert [objective.program(step) for step in range(12)] == [
        *["train_before_adversary"] * 3, "train_with_r1", *["train"] * 3, "train_with_r1", *["train"] * 3,
        "train_with_r1"]
    assert {make_task(r1_weight=0.0).objective.program(step) for step in range(40)} == {"train"}


def test_without_an_adversary_there_is_one_program(make_objective):
    assert {make_objective().program(step) for step in range(100)} == {"train"}


def test_each_program_shows_what_it_computes(make_task, batch):
    task = make_task(start_step=1, r1_every=2, lecam_weight=0.1)
    state = make_state(task)
    before, with_r1, usual = (set(run_step(task, state, batch, step)) for step in range(3))
    added = {"loss/adversarial", "weight/adversarial", "discriminator/loss", "discriminator/lecam",
             "discriminator/logits_real", "discriminator/logits_fake", "discriminator/gradient_norm",
             "discriminator/update_norm"}
    assert usual - before == added and before < usual
    assert with_r1 - usual == {"discriminator/r1"} and usual < with_r1


def test_the_loss_has_the_adversarial_term_with_its_weight(make_task, batch):
    task = make_task(weight=0.7)
    metrics = run_step(task, make_state(task), batch, 1)
    expected = (metrics["loss/codebook"] + metrics["loss/commitment"] + metrics["loss/l2"]
                + 0.1 * metrics["loss/logit_laplace"] + 0.7 * metrics["loss/adversarial"])
    assert metrics["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_adaptive_weight_is_measured_on_locations_of_the_named_layer(make_task, batch):
    task = make_task(weight=0.5, adaptive_layer=LAST_LAYER)
    state = make_state(task)
    params = {name: array.clone().requires_grad_() for name, array in select(state, "params/tokenizer/").items()}
    x = batch["images"].permute(0, 3, 1, 2).float() / 255
    _, made = apply(task.objective.tokenizer.forward, params, x, Context(RUNTIME.kernels))
    reconstruction_loss = (x - made.mean_BCHW).square().mean() + 0.1 * logit_laplace(
        x, made.location_BCHW, made.log_scale_BCHW).mean()
    logits = apply(
        task.objective.adversary.discriminator.forward, select(state, "params/discriminator/"), made.mean_BCHW,
        Context(RUNTIME.kernels))
    pull, push = (torch.autograd.grad(loss, params[LAST_LAYER], retain_graph=True)[0][:, :48].norm().item()
                  for loss in (reconstruction_loss, F.softplus(-logits).mean()))  # 48 values, then 48 log scales
    metrics = run_step(task, state, batch, 1)
    assert metrics["weight/adversarial"].item() == pytest.approx(0.5 * pull / (push + 1e-4), rel=1e-4)
    terms = (metrics["loss/codebook"] + metrics["loss/commitment"] + metrics["loss/l2"]
             + 0.1 * metrics["loss/logit_laplace"])
    assert metrics["loss"].item() == pytest.approx(
        (terms + metrics["weight/adversarial"] * metrics["loss/adversarial"]).item(), rel=1e-5)


def test_lecams_means_begin_with_the_first_batch_and_follow_the_logits(make_task, batch):
    task = make_task(lecam_weight=0.3, start_step=1, r1_weight=0.0)
    state = make_state(task)
    means, seen = [], []
    for step in range(3):
        metrics = run_step(task, state, batch, step)
        means.append([state[f"statistics/discriminator/logits_{side}"].item() for side in ("real", "fake")])
        seen.append([metrics.get(f"discriminator/logits_{side}", torch.zeros(())).item() for side in ("real", "fake")])
    assert means[0] == [0.0, 0.0]
    assert means[1] == seen[1] and seen[1][0] != seen[1][1] and seen[2] != seen[1]
    assert means[2] == pytest.approx([0.99 * old + 0.01 * new for old, new in zip(seen[1], seen[2], strict=True)])


def test_without_lecam_there_are_no_running_means(make_task):
    assert not any(name.startswith("statistics/") for name in make_task().init_spec())


def test_lecam_changes_the_discriminators_gradient(make_task, batch):
    norms = []
    for weight in (0.0, 0.3, 0.6):
        task = make_task(lecam_weight=weight, r1_weight=0.0)
        norms.append(run_step(task, make_state(task), batch, 1)["discriminator/gradient_norm"].item())
    assert len(set(norms)) == 3


def test_r1_in_bfloat16_gives_nearly_the_update_of_float32(make_task, batch):
    penalties, updates = [], []
    for dtype in ("float32", "bfloat16"):
        task = make_task(dtype=dtype)
        with_r1, without = make_state(task), make_state(task)
        penalties.append(run_step(task, with_r1, batch, 0)["discriminator/r1"])
        run_step(task, without, batch, 1)
        # Adam's first moment is a tenth of the gradient: the difference is R1's.
        moments = [
            torch.cat([array.flatten() for _, array in sorted(select(state, "optimizer/discriminator/m/").items())])
            for state in (with_r1, without)]
        updates.append(moments[0] - moments[1])
    assert penalties[1].dtype == torch.float32
    assert penalties[1].item() == pytest.approx(penalties[0].item(), rel=0.02)
    assert (updates[1] - updates[0]).norm() <= 0.05 * updates[0].norm() != 0


def test_operations_are_counted_for_each_program(make_task, batch):
    task = make_task(start_step=1, r1_every=2)
    programs = {task.objective.program(step) for step in range(3)}
    costs = {program: step_flops(task, task.init_spec(), batch, program) for program in programs}
    convolution = len(batch["images"]) * 16 * 6 * 48 * 2  # 16 patches, 6 features of 48 values each
    # Of both kinds of images forward and for the kernel, of reconstructions for themselves too.
    assert costs["train"] - costs["train_before_adversary"] == 5 * convolution
    # The images' gradient, and of this one its gradients: for the kernel, and for what came from above.
    assert costs["train_with_r1"] - costs["train"] == 3 * convolution


def test_the_discriminator_is_described_and_saved(make_task):
    task = make_task()
    assert task.describe()["discriminator"] == 6 * 48 + 6 + 6
    leaves = {name: leaf for name, leaf in task.init_spec().items() if "/discriminator/" in name}
    assert {name.split("/")[0] for name in leaves} == {"params", "optimizer"}
    assert all(leaf.saved for leaf in leaves.values())


def test_the_discriminator_learns_to_tell_images_from_reconstructions(make_task, batch):
    task = make_task(optimizer=AdamW(beta1=0.0, beta2=0.99), r1_weight=0.0, rate=0.0)
    state = make_state(task)
    history = [run_step(task, state, batch, step) for step in range(30)]
    assert history[-1]["discriminator/loss"] < history[0]["discriminator/loss"] - 0.01


def test_the_discriminators_rate_follows_the_run_and_the_weights_are_scalars(make_objective, make_learner):
    schedule = WarmupCosine(1e-2, 1e-3, warmup_steps=10, total_steps=20)
    adversary = Adversary(
        SmallDiscriminator(), make_learner(learning_rate=schedule), start_step=5, r1_weight=3.0, lecam_weight=0.2)
    scalars = GradientTask(make_objective(adversary)).host_scalars(12)
    assert scalars["learning_rate/discriminator"] == schedule(12) and scalars["learning_rate"] == 3e-3
    assert {name: scalars[f"weight/{name}"] for name in ("adversarial", "r1", "lecam")} == {
        "adversarial": 0.1, "r1": 3.0, "lecam": 0.2}


@pytest.mark.parametrize(("arguments", "message"), [
    ({"loss": "wasserstein"}, r"loss must be one of \('non_saturating', 'hinge', 'vanilla'\), got 'wasserstein'"),
    ({"weight": -0.1}, "weight must be at least 0, got -0.1"),
    ({"r1_weight": math.nan}, "r1_weight must be at least 0, got nan"),
    ({"lecam_weight": -1.0}, "lecam_weight must be at least 0, got -1.0"),
    ({"start_step": -1}, "start_step must be an integer of at least 0, got -1"),
    ({"r1_every": 0}, "r1_every must be a whole number of at least 1, got 0"),
    ({"adaptive_layer": "decoder/last"},
     "adaptive_layer must be None or a parameter of the decoder, one of decoder/.*; got 'decoder/last'"),
    ({"adaptive_layer": "encoder/embed/kernel_IO"}, "adaptive_layer must be None or a parameter of the decoder"),
])
def test_impossible_settings_are_refused_before_training(make_objective, make_learner, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_objective(Adversary(SmallDiscriminator(), make_learner(), **arguments))


def test_batches_are_those_that_the_discriminator_takes(make_objective, make_learner):
    objective = make_objective(Adversary(StyleGAN2Discriminator(16, 32, group_size=4), make_learner()))
    objective.check_batch(8)
    make_objective().check_batch(6)
    with pytest.raises(ValueError, match="must be a multiple of the discriminator's group_size 4 .*, got 6"):
        objective.check_batch(6)


def test_a_discriminator_of_another_image_size_is_refused(make_objective, make_learner):
    adversary = Adversary(SmallDiscriminator(image_size=32), make_learner())
    with pytest.raises(ValueError, match="image_size of the discriminator must be the tokenizer's 16, got 32"):
        make_objective(adversary)
