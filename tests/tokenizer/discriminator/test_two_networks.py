"""Two networks in one step: against two plain PyTorch optimizers, and what stops both of them."""
import math

import pytest
import torch
import torch.nn.functional as F

from tests.support.steps import RUNTIME, Recorder, copy, run_step
from tests.tokenizer.discriminator.steps import make_state
from tests.tokenizer.small_discriminator import SmallDiscriminator
from vqim.contracts.context import Context
from vqim.nn.module import apply
from vqim.state.leaf import select
from vqim.tokenizer.losses import logit_laplace
from vqim.training.gradient_task import GradientTask


class Reference:
    """The same training in plain PyTorch: two copies of the parameters, two optimizers, one loss at a time."""

    def __init__(self, task, state, start_step, r1_every, generator_loss, discriminator_loss):
        self.task, self.start_step, self.r1_every = task, start_step, r1_every
        self.generator_loss, self.discriminator_loss = generator_loss, discriminator_loss
        self.params = {
            name: array.clone().requires_grad_() for name, array in select(state, "params/tokenizer/").items()}
        self.critic = {
            name: array.clone().requires_grad_() for name, array in select(state, "params/discriminator/").items()}
        self.optimizer = torch.optim.AdamW(self.params.values(), lr=3e-3, eps=1e-2, weight_decay=0)
        self.critic_optimizer = torch.optim.AdamW(self.critic.values(), lr=2e-3, eps=1e-2, weight_decay=0)

    def judge(self, params, images_BCHW):
        discriminator = self.task.objective.adversary.discriminator
        return apply(discriminator.forward, params, images_BCHW, Context(RUNTIME.kernels))

    def r1(self, images_BCHW):
        """E |grad D|^2 for images in [-1, 1], one image at a time."""
        squares = []
        for image_CHW in 2 * images_BCHW - 1:
            image_CHW.requires_grad_()
            logit = self.judge(self.critic, (image_CHW[None] + 1) / 2).mean()
            gradient, = torch.autograd.grad(logit, image_CHW, create_graph=True)
            squares.append(gradient.square().sum())
        return torch.stack(squares).mean()

    def step(self, batch, step):
        x = batch["images"].permute(0, 3, 1, 2).float() / 255
        quantized, made = apply(self.task.objective.tokenizer.forward, self.params, x, Context(RUNTIME.kernels))
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
def test_updates_of_both_networks_equal_those_of_two_plain_pytorch_optimizers(make_task, batch, kind, patches):
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


def test_before_the_start_a_step_is_that_of_a_task_without_adversary(make_task, make_objective, batch):
    task = make_task(start_step=2)
    alone = GradientTask(make_objective())
    state, expected = make_state(task), make_state(alone)
    critic = select(copy(state), "params/discriminator/")
    for step in range(2):
        metrics = run_step(task, state, batch, step)
        assert metrics == run_step(alone, expected, batch, step)
    assert all(torch.equal(state[name], array) for name, array in expected.items() if not name.startswith("health/"))
    assert all(torch.equal(state[f"params/discriminator/{name}"], array) for name, array in critic.items())
    assert all(not array.any() for array in select(state, "optimizer/discriminator/").values())
    assert task.host_scalars(1)["weight/adversarial"] == 0.0 and task.host_scalars(2)["weight/adversarial"] == 0.1


class PoisonedDiscriminator(SmallDiscriminator):
    """Its logits are finite for all images, and their gradient is not."""

    def forward(self, images_BCHW, context):
        logits = super().forward(images_BCHW, context)
        return logits + torch.sqrt(self.bias_O.sum() * 0.0)


def test_a_discriminators_gradient_that_is_not_finite_stops_both_networks_for_good(make_task, batch):
    task = make_task(start_step=1)
    task.objective.adversary.discriminator = PoisonedDiscriminator()
    state = make_state(task)
    run_step(task, state, batch, 0)
    healthy = copy(state)
    metrics = run_step(task, state, batch, 1)
    assert math.isfinite(metrics["loss"]) and math.isfinite(metrics["discriminator/loss"])
    assert math.isfinite(metrics["gradient_norm"]) and math.isnan(metrics["discriminator/gradient_norm"])
    assert state["health/first_bad_step"].item() == 1
    bad = [name for name, bad in zip(task.checked, state["health/is_bad"], strict=True) if bad]
    assert bad == ["discriminator/bias_O"]
    task.objective.adversary.discriminator = SmallDiscriminator()
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
        assert (recorder.step.item(), recorder.rate.item()) == (step - 7, pytest.approx(2e-3))


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
