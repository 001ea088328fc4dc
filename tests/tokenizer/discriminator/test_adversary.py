"""Two networks in one step: against two plain PyTorch optimizers, when which term is there, what stops both."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tokenizer.small_discriminator import SmallDiscriminator
from vqim.nn.context import Context
from vqim.nn.module import apply
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant, WarmupCosine
from vqim.runtime.meta import step_flops
from vqim.runtime.torch import TorchRuntime
from vqim.tokenizer.adversary import Adversary
from vqim.tokenizer.losses import logit_laplace
from vqim.tokenizer.task import TokenizerTask
from vqim.training.state import start

RUNTIME = TorchRuntime()
LAST_LAYER = "decoder/head/contract/kernel_IO"


@pytest.fixture
def make_task(make_tokenizer):
    """`make_task(...)`: a tiny tokenizer and its adversary, with the arguments given to the adversary.

    A large eps keeps Adam from making steps of rounding errors, where a gradient is zero but for these.
    """
    def make(num_micro_batches=1, optimizer=None, dtype="float32", rate=3e-3, **kwargs):
        adversary = Adversary(
            SmallDiscriminator(patches=kwargs.pop("patches", False)), optimizer or AdamW(eps=1e-2), Constant(2e-3),
            **kwargs)
        return TokenizerTask(
            make_tokenizer(), AdamW(eps=1e-2), Constant(rate), adversary=adversary, dtype=dtype,
            num_micro_batches=num_micro_batches)
    return make


@pytest.fixture(name="batch")
def batch_of_emoji(emoji):
    return RUNTIME.put({"images": emoji[:8], "labels": np.zeros(8, np.int32)})


def make_state(task):
    """Initial values and some noise: a new transformer block is the identity."""
    state, generator = start(task.init_spec(), 0, RUNTIME).arrays, torch.Generator().manual_seed(0)
    for name, array in state.items():
        if name.startswith("params/tokenizer/"):
            array += 0.3 * torch.randn(array.shape, generator=generator)
    return state


def run_step(task, state, batch, step):
    scalars = RUNTIME.scalars({**task.host_scalars(step), "step": step, "seed": 0})
    return task.train_step(state, batch, scalars, RUNTIME.kernels, task.program(step))


def copy(state):
    return {name: array.clone() for name, array in state.items()}


def part(state, prefix):
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}


class Reference:
    """The same training in plain PyTorch: two copies of the parameters, two optimizers, one loss at a time."""

    def __init__(self, task, state, start_step, r1_every, generator_loss, discriminator_loss):
        self.task, self.start_step, self.r1_every = task, start_step, r1_every
        self.generator_loss, self.discriminator_loss = generator_loss, discriminator_loss
        self.params = {name: array.clone().requires_grad_() for name, array in part(state, "params/tokenizer/").items()}
        self.critic = {
            name: array.clone().requires_grad_() for name, array in part(state, "params/discriminator/").items()}
        self.optimizer = torch.optim.AdamW(self.params.values(), lr=3e-3, eps=1e-2, weight_decay=0)
        self.critic_optimizer = torch.optim.AdamW(self.critic.values(), lr=2e-3, eps=1e-2, weight_decay=0)

    def judge(self, params, images_BCHW):
        return apply(self.task.adversary.discriminator.forward, params, images_BCHW, Context(RUNTIME.kernels))

    def r1(self, images_BCHW):
        """E |grad D|^2 for images in [-1, 1], one picture at a time."""
        squares = []
        for image_CHW in 2 * images_BCHW - 1:
            image_CHW.requires_grad_()
            logit = self.judge(self.critic, (image_CHW[None] + 1) / 2).mean()
            gradient, = torch.autograd.grad(logit, image_CHW, create_graph=True)
            squares.append(gradient.square().sum())
        return torch.stack(squares).mean()

    def step(self, batch, step):
        x = batch["images"].permute(0, 3, 1, 2).float() / 255
        quantized, made = apply(self.task.model.forward, self.params, x, Context(RUNTIME.kernels))
        loss = sum(quantized.losses.values()) + (x - made.mean_BCHW).square().mean()
        loss = loss + 0.1 * logit_laplace(x, made.location_BCHW, made.log_scale_BCHW).mean()
        constant = {name: array.detach() for name, array in self.critic.items()}
        if step >= self.start_step:
            loss = loss + 0.1 * self.generator_loss(self.judge(constant, made.mean_BCHW))
        self.optimizer.zero_grad()
        loss.backward()
        if step >= self.start_step:
            fake = made.mean_BCHW.detach()
            critic_loss = self.discriminator_loss(self.judge(self.critic, x), self.judge(self.critic, fake))
            if (step - self.start_step) % self.r1_every == 0:
                critic_loss = critic_loss + self.r1_every * 10 / 2 * self.r1(x)
            self.critic_optimizer.zero_grad()
            critic_loss.backward()
            self.critic_optimizer.step()
        self.optimizer.step()


LOSSES = {
    "non_saturating": (lambda fake: F.softplus(-fake).mean(),
                       lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean()),
    "hinge": (lambda fake: -fake.mean(), lambda real, fake: (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2),
}


@pytest.mark.parametrize("kind, patches", [("non_saturating", False), ("hinge", True)])
def test_both_updates_equal_those_of_two_plain_pytorch_optimizers(make_task, batch, kind, patches):
    task = make_task(loss=kind, patches=patches, start_step=1, r1_every=2)
    state = make_state(task)
    before, reference = copy(state), Reference(task, state, 1, 2, *LOSSES[kind])
    for step in range(5):
        run_step(task, state, batch, step)
        reference.step(batch, step)
    for network, params in (("tokenizer", reference.params), ("discriminator", reference.critic)):
        for name, expected in params.items():
            moved = (expected.detach() - before[f"params/{network}/{name}"]).norm()
            gap = (expected.detach() - state[f"params/{network}/{name}"]).norm()
            assert gap <= 1e-3 * moved + 1e-7, (name, gap, moved)


def test_the_defaults_are_the_papers_and_stylegan2s():
    defaults = Adversary.__init__.__kwdefaults__
    assert (defaults["weight"], defaults["loss"]) == (0.1, "non_saturating")
    assert (defaults["r1_weight"], defaults["r1_every"], defaults["start_step"]) == (10.0, 16, 0)
    assert defaults["lecam_weight"] == 0.0 and defaults["adaptive_layer"] is None


def test_r1_is_part_of_every_nth_step_from_the_adversarial_start_on(make_task):
    task = make_task(start_step=3, r1_every=4)
    assert [task.program(step) for step in range(12)] == [
        *["train_before_adversary"] * 3, "train_with_r1", *["train"] * 3, "train_with_r1", *["train"] * 3,
        "train_with_r1"]
    assert {make_task(r1_weight=0.0).program(step) for step in range(40)} == {"train"}


def test_a_task_without_an_adversary_has_one_program(make_tokenizer):
    task = TokenizerTask(make_tokenizer(), AdamW(), Constant(1e-3))
    assert {task.program(step) for step in range(100)} == {"train"}


def test_before_the_start_a_step_is_that_of_a_task_without_adversary(make_task, make_tokenizer, batch):
    task = make_task(start_step=2)
    alone = TokenizerTask(make_tokenizer(), AdamW(eps=1e-2), Constant(3e-3))
    state, expected = make_state(task), make_state(alone)
    critic = part(copy(state), "params/discriminator/")
    for step in range(2):
        metrics = run_step(task, state, batch, step)
        assert metrics == run_step(alone, expected, batch, step)
    assert all(torch.equal(state[name], array) for name, array in expected.items() if not name.startswith("health/"))
    assert all(torch.equal(state[f"params/discriminator/{name}"], array) for name, array in critic.items())
    assert all(not array.any() for array in part(state, "optimizer/discriminator/").values())
    assert task.host_scalars(1)["weight/adversarial"] == 0.0 and task.host_scalars(2)["weight/adversarial"] == 0.1


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


def test_the_adaptive_weight_is_measured_on_the_named_layer(make_task, batch):
    task = make_task(weight=0.5, adaptive_layer=LAST_LAYER)
    state = make_state(task)
    params = {name: array.clone().requires_grad_() for name, array in part(state, "params/tokenizer/").items()}
    x = batch["images"].permute(0, 3, 1, 2).float() / 255
    _, made = apply(task.model.forward, params, x, Context(RUNTIME.kernels))
    reconstruction_loss = (x - made.mean_BCHW).square().mean() + 0.1 * logit_laplace(
        x, made.location_BCHW, made.log_scale_BCHW).mean()
    logits = apply(
        task.adversary.discriminator.forward, part(state, "params/discriminator/"), made.mean_BCHW,
        Context(RUNTIME.kernels))
    pull, push = (torch.autograd.grad(loss, params[LAST_LAYER], retain_graph=True)[0].norm().item()
                  for loss in (reconstruction_loss, F.softplus(-logits).mean()))
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


class PoisonedDiscriminator(SmallDiscriminator):
    """Its logits are finite for all pictures, and their gradient is not."""

    def forward(self, images_BCHW, context):
        logits = super().forward(images_BCHW, context)
        return logits + torch.sqrt(self.bias_O.sum() * 0.0)


def test_a_discriminators_gradient_that_is_not_finite_stops_both_networks_for_good(make_task, batch):
    task = make_task(start_step=1)
    task.adversary.discriminator = PoisonedDiscriminator()
    state = make_state(task)
    run_step(task, state, batch, 0)
    healthy = copy(state)
    metrics = run_step(task, state, batch, 1)
    assert math.isfinite(metrics["loss"]) and math.isfinite(metrics["discriminator/loss"])
    assert math.isfinite(metrics["gradient_norm"]) and math.isnan(metrics["discriminator/gradient_norm"])
    assert state["health/first_bad_step"].item() == 1
    bad = [name for name, bad in zip(task.checked, state["health/is_bad"], strict=True) if bad]
    assert bad == ["discriminator/bias_O"]
    task.adversary.discriminator = SmallDiscriminator()
    run_step(task, state, batch, 2)
    assert state["health/first_bad_step"].item() == 1
    for name, array in healthy.items():
        if not name.startswith("health/"):
            assert torch.equal(state[name], array), name


def test_a_tokenizers_gradient_that_is_not_finite_stops_both_networks(make_task, batch):
    task = make_task(lecam_weight=0.1)
    state = make_state(task)
    state["params/tokenizer/encoder/embed/bias_O"][3] = math.nan
    before = copy(state)
    run_step(task, state, batch, 0)
    assert state["health/first_bad_step"].item() == 0
    for name, array in before.items():
        if not name.startswith("health/"):
            torch.testing.assert_close(state[name], array, rtol=0, atol=0, equal_nan=True)


def test_flags_of_the_discriminator_stay_clear_before_its_start(make_task, batch):
    task = make_task(start_step=9)
    state = make_state(task)
    state["params/discriminator/bias_O"][0] = math.nan
    run_step(task, state, batch, 8)
    assert state["health/first_bad_step"].item() == -1
    run_step(task, state, batch, 9)
    assert state["health/first_bad_step"].item() == 9


class Recorder:
    """An optimizer that keeps the gradients it is given and changes nothing."""

    def init_spec(self, params):
        return {}

    def update(self, params, grads, slots, *, learning_rate, step, keep):
        self.grads, self.step, self.rate = grads, step.item(), learning_rate.item()
        return {"update_norm": torch.zeros(())}


def test_the_discriminators_gradients_are_scaled_down_to_their_own_largest_norm(make_task, batch):
    recorder = Recorder()
    task = make_task(optimizer=recorder, max_gradient_norm=1e-3)
    metrics = run_step(task, make_state(task), batch, 1)
    norm = math.sqrt(sum(grad.double().square().sum() for grad in recorder.grads.values()))
    assert norm == pytest.approx(1e-3, rel=1e-4) and metrics["discriminator/gradient_norm"] > 0.01
    unclipped = make_task()
    assert run_step(unclipped, make_state(unclipped), batch, 1)["gradient_norm"] == metrics["gradient_norm"]


def test_the_discriminators_optimizer_counts_from_the_adversarial_start(make_task, batch):
    recorder = Recorder()
    task = make_task(optimizer=recorder, start_step=7)
    for step in (7, 9):
        run_step(task, make_state(task), batch, step)
        assert (recorder.step, recorder.rate) == (step - 7, pytest.approx(2e-3))


@pytest.mark.parametrize("step", [0, 1])
def test_micro_batches_give_the_update_of_the_whole_batch(make_task, batch, step):
    states, shown = [], []
    for num_micro_batches in (1, 4):
        task = make_task(num_micro_batches, lecam_weight=0.1, patches=True)
        states.append(make_state(task))
        shown.append(run_step(task, states[-1], batch, step))
    for name, value in shown[0].items():
        assert shown[1][name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-7), name
    for name, array in states[0].items():
        torch.testing.assert_close(states[1][name], array, rtol=1e-4, atol=2e-6)


def test_r1_in_bfloat16_gives_nearly_the_update_of_float32(make_task, batch):
    penalties, updates = [], []
    for dtype in ("float32", "bfloat16"):
        task = make_task(dtype=dtype)
        with_r1, without = make_state(task), make_state(task)
        penalties.append(run_step(task, with_r1, batch, 0)["discriminator/r1"])
        run_step(task, without, batch, 1)
        # Adam's first moment is a tenth of the gradient: the difference is R1's.
        moments = [torch.cat([array.flatten() for name, array in sorted(part(state, "optimizer/discriminator/").items())
                              if name.startswith("m/")]) for state in (with_r1, without)]
        updates.append(moments[0] - moments[1])
    assert penalties[1].dtype == torch.float32
    assert penalties[1].item() == pytest.approx(penalties[0].item(), rel=0.02)
    assert (updates[1] - updates[0]).norm() <= 0.05 * updates[0].norm() != 0


def test_operations_are_counted_for_each_program(make_task, batch):
    task = make_task(start_step=1, r1_every=2)
    costs = {task.program(step): step_flops(task, task.init_spec(), batch, task.program(step)) for step in range(3)}
    convolution = len(batch["images"]) * 16 * 6 * 48 * 2  # 16 patches, 6 features of 48 values each
    # Of both kinds of pictures forward and for the kernel, of reconstructions for themselves too.
    assert costs["train"] - costs["train_before_adversary"] == 5 * convolution
    # The pictures' gradient, and of this one its gradients: for the kernel, and for what came from above.
    assert costs["train_with_r1"] - costs["train"] == 3 * convolution


def test_the_discriminator_is_described_and_saved(make_task):
    task = make_task()
    assert task.describe()["discriminator"] == 6 * 48 + 6 + 6
    leaves = {name: leaf for name, leaf in task.init_spec().items() if "/discriminator/" in name}
    assert {name.split("/")[0] for name in leaves} == {"params", "optimizer"}
    assert all(leaf.saved for leaf in leaves.values())


def test_the_discriminator_learns_to_tell_pictures_from_reconstructions(make_task, batch):
    task = make_task(optimizer=AdamW(beta1=0.0, beta2=0.99), r1_weight=0.0, rate=0.0)
    state = make_state(task)
    history = [run_step(task, state, batch, step) for step in range(30)]
    assert history[-1]["discriminator/loss"] < history[0]["discriminator/loss"] - 0.01


def test_both_rates_follow_the_run_and_the_weights_are_scalars(make_tokenizer):
    schedule = WarmupCosine(1e-2, 1e-3, warmup_steps=10, total_steps=20)
    adversary = Adversary(SmallDiscriminator(), AdamW(), schedule, start_step=5, r1_weight=3.0, lecam_weight=0.2)
    task = TokenizerTask(make_tokenizer(), AdamW(), schedule, adversary=adversary)
    scalars = task.host_scalars(12)
    assert scalars["learning_rate/discriminator"] == scalars["learning_rate"] == schedule(12)
    assert {name: scalars[f"weight/{name}"] for name in ("adversarial", "r1", "lecam")} == {
        "adversarial": 0.1, "r1": 3.0, "lecam": 0.2}


@pytest.mark.parametrize(("arguments", "message"), [
    ({"loss": "wasserstein"}, r"loss must be one of \('non_saturating', 'hinge', 'vanilla'\), got 'wasserstein'"),
    ({"weight": -0.1}, "weight must be at least 0, got -0.1"),
    ({"r1_weight": math.nan}, "r1_weight must be at least 0, got nan"),
    ({"lecam_weight": -1.0}, "lecam_weight must be at least 0, got -1.0"),
    ({"start_step": -1}, "start_step must be an integer of at least 0, got -1"),
    ({"r1_every": 0}, "r1_every must be a whole number of at least 1, got 0"),
    ({"max_gradient_norm": 0.0}, "max_gradient_norm must be positive or None, got 0.0"),
    ({"adaptive_layer": "decoder/last"},
     "adaptive_layer must be None or a parameter of the decoder, one of decoder/.*; got 'decoder/last'"),
    ({"adaptive_layer": "encoder/embed/kernel_IO"}, "adaptive_layer must be None or a parameter of the decoder"),
])
def test_impossible_settings_are_refused_before_training(make_tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenizerTask(make_tokenizer(), AdamW(), Constant(1e-3), adversary=Adversary(
            SmallDiscriminator(), AdamW(), Constant(1e-3), **arguments))


def test_a_discriminator_of_another_image_size_is_refused(make_tokenizer):
    adversary = Adversary(SmallDiscriminator(image_size=32), AdamW(), Constant(1e-3))
    with pytest.raises(ValueError, match="image_size of the discriminator must be the tokenizer's 16, got 32"):
        TokenizerTask(make_tokenizer(), AdamW(), Constant(1e-3), adversary=adversary)
