"""The one task: what it does for every objective, and what stays as it is when a part is trained.

    B batch, N positions, V vocabulary, Z code dimensions
"""
import dataclasses
import math

import pytest
import torch
from torch import nn

from tests.support.steps import Recorder, run_step
from tests.training.small_tasks import (
    BATCH_SIZE,
    OBJECTIVES,
    SIZES,
    changed,
    copy,
    gradients,
    make_batch,
    make_state,
    make_task,
)
from vqim.contracts.learning import Advanced, Computed, Learner, OneLearner
from vqim.nn.module import parameter, spec, statistic
from vqim.optim.adamw import AdamW
from vqim.optim.groups import Group
from vqim.optim.schedules import Constant
from vqim.runtime.meta import step_flops
from vqim.state import init, sections
from vqim.training.gradient_task import GradientTask

MAIN = {"adversarial tokenizer": "tokenizer"}
"""The first learner's name, where it is not the objective's kind."""


@pytest.fixture(name="batch", scope="module")
def small_batch():
    return make_batch()


def of_learner(names, learner):
    """Those names of a state that belong to a learner, without the section and its name."""
    return {name.split("/", 2)[2] for name in names if name.split("/")[1] == learner}


# ---- Every objective alike.


# Not the probe, whose features are standardised by each micro-batch; tests/probe has what that comes to.
@pytest.mark.parametrize("kind", [kind for kind in OBJECTIVES if kind != "probe"])
def test_two_micro_batches_have_the_gradients_of_one_batch(batch, kind):
    whole, parts = make_task(kind), make_task(kind, num_micro_batches=2)
    expected, metrics = (run_step(task, make_state(task), batch) for task in (whole, parts))
    assert metrics["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    size = max(grad.abs().max().item() for grad in gradients(whole).values())
    for name, grad in gradients(whole).items():
        torch.testing.assert_close(gradients(parts)[name], grad, rtol=1e-4, atol=1e-6 * size)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_moving_averages_are_those_of_the_parameters_after_each_step(batch, kind):
    task = make_task(kind, AdamW, ema_decay=0.5)
    state = make_state(task)
    averages = {name: 0.0 for name in state if name.startswith("params/")}
    for step, rate in enumerate([1.0, 10 / 11, 10 / 12]):  # 10 / (10 + step) until 1 - decay is more
        run_step(task, state, batch, step)
        averages = {name: old + rate * (state[name].double() - old) for name, old in averages.items()}
    for name, average in averages.items():
        torch.testing.assert_close(state[name.replace("params/", "ema/")].double(), average, rtol=1e-5, atol=1e-6)
        assert not torch.equal(state[name.replace("params/", "ema/")], state[name])


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_who_reads_a_network_has_moving_averages_and_statistics(batch, kind):
    task = make_task(kind, AdamW, ema_decay=0.5)
    state = make_state(task)
    for step in range(2):
        run_step(task, state, batch, step)
    for learner in task.objective.learners():
        arrays = sections.network_arrays(state, learner.name)
        expected = {name.split("/", 2)[2]: array for name, array in state.items()
                    if name.startswith((f"ema/{learner.name}/", f"statistics/{learner.name}/"))}
        assert arrays.keys() == expected.keys() >= spec(learner.module).keys()
        assert all(torch.equal(arrays[name], array) for name, array in expected.items())


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_moving_averages_change_no_training(batch, kind):
    averaged, plain = make_task(kind, AdamW, ema_decay=0.9), make_task(kind, AdamW)
    state, expected = make_state(averaged), make_state(plain)
    for step in range(2):
        run_step(averaged, state, batch, step)
        run_step(plain, expected, batch, step)
    assert changed(state, expected) == set()


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_gradients_are_scaled_down_to_their_largest_norm_each_learners_by_its_own(batch, kind):
    free, clipped, loose = (make_task(kind, max_gradient_norm=limit) for limit in (None, 1e-3, 1e6))
    shown = [run_step(task, make_state(task), batch) for task in (free, clipped, loose)]
    for number, learner in enumerate(free.objective.learners()):
        grads = learner.optimizer.grads
        norm = math.sqrt(sum(grad.double().square().sum().item() for grad in grads.values()))
        name = "gradient_norm" if number == 0 else f"{learner.name}/gradient_norm"
        assert norm > 1e-2 and [metrics[name].item() for metrics in shown] == pytest.approx([norm] * 3, rel=1e-5)
        for other, scale in ((clipped, 1e-3 / norm), (loose, 1.0)):
            for parameter_name, grad in grads.items():
                found = other.objective.learners()[number].optimizer.grads[parameter_name]
                torch.testing.assert_close(found, scale * grad, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_value_that_is_not_finite_changes_nothing_ever_after(batch, kind):
    task = make_task(kind, AdamW, ema_decay=0.5)
    state, name = make_state(task), MAIN.get(kind, kind)
    run_step(task, state, batch)
    victim = next(array for key, array in state.items() if key.startswith(f"params/{name}/"))
    healthy = victim.clone()
    victim.view(-1)[0] = math.nan
    before = copy(state)
    run_step(task, state, batch, step=1)
    assert {key for key in changed(state, before) if not key.startswith("health/")} <= {
        key for key, array in state.items() if array is victim}  # which is not equal to itself
    assert state["health/first_bad_step"] == 1
    flagged = [key for key, bad in zip(task.checked, state["health/is_bad"].tolist(), strict=True) if bad]
    assert "loss" in flagged
    victim.copy_(healthy)
    before = copy(state)
    run_step(task, state, batch, step=2)
    assert changed(state, before) == set()


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_slots_and_averages_are_those_of_the_parameters_and_statistics_get_none(kind):
    task = make_task(kind, AdamW, ema_decay=0.5)
    names = task.init_spec()
    for learner in task.objective.learners():
        params = spec(learner.module).keys()
        of = {section: of_learner([name for name in names if name.startswith(f"{section}/")], learner.name)
              for section in ("params", "ema", "optimizer")}
        assert of == {"params": params, "ema": params,
                      "optimizer": {f"{slot}/{name}" for slot in "mv" for name in params}}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_description_counts_every_parameter_once(kind):
    task = make_task(kind)
    counts = task.describe()
    trained = sum(count for part, count in counts.items() if "(frozen)" not in part)
    assert trained == sum(leaf.size for name, leaf in task.init_spec().items() if name.startswith("params/"))
    frozen = sum(leaf.size for name, leaf in task.init_spec().items() if name.startswith("frozen/"))
    assert sum(counts.values()) == trained + frozen


# ---- Training a part: `trains`.

DECODER = "decoder/.*"
ENCODER = "encoder/.*"


def is_decoder(name):
    return name.split("/", 2)[2].startswith("decoder/")


def test_what_is_not_trained_does_not_change(batch):
    task = make_task("tokenizer", AdamW, trains=DECODER)
    state = make_state(task)
    before = copy(state)
    for step in range(2):
        run_step(task, state, batch, step)
    moved = {name for name in changed(state, before) if name.startswith("params/")}
    assert moved == {name for name in state if name.startswith("params/") and is_decoder(name)}


def test_what_is_not_trained_has_no_slots_and_no_moving_average():
    names = make_task("tokenizer", AdamW, trains=DECODER, ema_decay=0.5).init_spec()
    for section in ("ema/tokenizer/", "optimizer/tokenizer/m/", "optimizer/tokenizer/v/"):
        there = {name.removeprefix(section) for name in names if name.startswith(section)}
        assert there == {name.split("/", 2)[2] for name in names if name.startswith("params/") and is_decoder(name)}


def test_what_is_not_trained_has_no_share_in_the_norm_that_clips(batch):
    free, part = make_task("tokenizer"), make_task("tokenizer", trains=DECODER, max_gradient_norm=1e-3)
    run_step(free, make_state(free), batch)
    metrics = run_step(part, make_state(part), batch)
    expected = {name: grad for name, grad in gradients(free).items() if name.startswith("tokenizer/decoder/")}
    norm = math.sqrt(sum(grad.double().square().sum().item() for grad in expected.values()))
    assert metrics["gradient_norm"].item() == pytest.approx(norm, rel=1e-5)
    assert gradients(part).keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(gradients(part)[name], grad * (1e-3 / norm), rtol=1e-4, atol=1e-9)


def test_who_reads_a_network_has_averages_of_what_is_trained_and_the_rest_as_it_is(batch):
    task = make_task("tokenizer", AdamW, trains=DECODER, ema_decay=0.5)
    state = make_state(task)
    for step in range(2):
        run_step(task, state, batch, step)
    arrays = sections.network_arrays(state, "tokenizer")
    assert arrays.keys() == spec(task.objective.tokenizer).keys()
    for name, array in arrays.items():
        section = "ema" if name.startswith("decoder/") else "params"
        assert torch.equal(array, state[f"{section}/tokenizer/{name}"])


def matrices(module):
    """Number of elements of all kernels."""
    return sum(leaf.size for leaf in spec(module).values() if "out" in leaf.axes)


@pytest.mark.parametrize("trains", [".*", DECODER, ENCODER])
def test_what_is_not_trained_costs_no_operations_of_a_backward_pass(batch, trains):
    task = make_task("tokenizer", trains=trains)
    model, positions = task.objective.tokenizer, BATCH_SIZE * 16
    attention = SIZES["num_layers"] * 2 * 2 * 16 * 16 * SIZES["width"] * BATCH_SIZE  # of a tower, forward
    codebook = 2 * 32 * 4 * positions
    forward = 2 * matrices(model) * positions + 2 * attention + codebook
    # A product's gradients cost one product for its inputs and one for its kernel; attention's cost twice its own.
    inputs = {part: 2 * matrices(getattr(model, part)) * positions for part in ("encoder", "quantizer", "decoder")}
    images = 2 * matrices(model.encoder.embed) * positions  # whose gradient nobody wants
    backward = {
        ".*": 2 * sum(inputs.values()) - images + 4 * attention,
        DECODER: 2 * inputs["decoder"] + 2 * attention,
        ENCODER: inputs["decoder"] + inputs["quantizer"] + 2 * inputs["encoder"] - images + 4 * attention,
    }
    assert step_flops(task, task.init_spec(), batch) == forward + backward[trains]


def test_a_stack_of_blocks_is_frozen_whole(batch):
    task = make_task("tokenizer", AdamW, trains="(?!encoder/tower/blocks/).*")
    state = make_state(task)
    before = copy(state)
    run_step(task, state, batch)
    stacks = {name for name in before if name.startswith("params/tokenizer/encoder/tower/blocks/")}
    assert all(len(before[name]) == SIZES["num_layers"] for name in stacks)
    moved = changed(state, before)
    assert stacks & moved == set() and "params/tokenizer/encoder/embed/kernel_IO" in moved


def test_optimizer_groups_that_match_only_what_is_not_trained_are_no_error(batch):
    def optimizer():
        return AdamW(groups=(Group("encoder/.*", 0.1), Group("(?!encoder/).*")))

    task = make_task("tokenizer", optimizer, trains=DECODER)
    assert "learning_rate" in task.host_scalars(0) and "update_norm" in run_step(task, make_state(task), batch)


def test_a_pattern_that_trains_nothing_is_refused():
    with pytest.raises(ValueError, match="trains must match parameters of tokenizer, 'decoder' matches none; they"):
        make_task("tokenizer", trains="decoder")


def test_a_trained_leaf_that_no_loss_reaches_is_an_error_that_names_it(batch):
    task = make_task("tokenizer")
    task.objective.terms.clear()  # only the quantizer's own losses are left
    with pytest.raises(ValueError, match="trains must leave out what no loss reaches.* no loss depends on "
                                         "quantizer/project_out/kernel_IO, .*, decoder/tower/positions_hwD, "):
        run_step(task, make_state(task), batch)


def test_the_description_says_what_is_not_trained():
    counts = make_task("tokenizer", trains=DECODER).describe()
    assert counts.keys() == {
        "tokenizer/encoder (not trained)", "tokenizer/quantizer (not trained)", "tokenizer/decoder"}


# ---- Programs, micro-batches, and what moves without gradients.


def test_a_learner_that_is_absent_from_a_program_does_not_move(batch):
    task = make_task("adversarial tokenizer", AdamW, adversary={"start_step": 2}, ema_decay=0.5)
    state = make_state(task)
    before = copy(state)
    for step in range(2):
        run_step(task, state, batch, step)
    assert {name.split("/")[1] for name in changed(state, before)} == {"tokenizer"}
    before = copy(state)
    run_step(task, state, batch, step=2)
    assert {name.split("/")[1] for name in changed(state, before)} == {"tokenizer", "discriminator"}


class Count(nn.Module):
    """A weight, and how many images there have been."""

    def __init__(self):
        super().__init__()
        self.weight = parameter((), init.Constant(2.0))
        self.seen = statistic((), init.Constant(0.0))


class Counting(OneLearner):
    """Notes the context of each micro-batch, and adds up images as a statistic; the weight's gradient is `slope`."""

    name = "count"

    def __init__(self, slope=1.0):
        self.module, self.slope = Count(), slope
        self.contexts, self.advanced = [], []
        self.learner = Learner(self.name, self.module, AdamW(), Constant(0.1))

    def compute(self, leaves, arrays, batch, context, program):
        self.contexts.append((context.micro_batch, context.key.item(), context.step_key.item()))
        loss = self.slope * leaves[self.name]["weight"]
        return Computed({self.name: loss}, {"rows": torch.tensor(float(len(batch["images"])))},
                        {"rows": torch.tensor(float(len(batch["images"])))})

    def advance(self, arrays, computed, context, program):
        self.advanced.append((computed.metrics["rows"].item(), arrays["params/count/weight"].item(),
                              torch.is_grad_enabled()))
        seen = "statistics/count/seen"
        return Advanced({seen: arrays[seen] + computed.sums["rows"]}, {"seen": computed.sums["rows"]})


@pytest.mark.parametrize("num_micro_batches", [1, 2, 4])
def test_sums_of_micro_batches_reach_advance_added_up_and_metrics_as_means(batch, num_micro_batches):
    objective = Counting()
    task = GradientTask(objective, num_micro_batches)
    state = make_state(task)
    metrics = run_step(task, state, batch)
    assert state["statistics/count/seen"].item() == metrics["seen"].item() == BATCH_SIZE
    assert metrics["rows"].item() == objective.advanced[0][0] == BATCH_SIZE / num_micro_batches


def test_advance_comes_once_after_the_updates_and_without_gradients(batch):
    objective = Counting()
    task = GradientTask(objective, num_micro_batches=2)
    state = make_state(task)
    before = state["params/count/weight"].item()
    run_step(task, state, batch)
    (_, seen, with_gradients), = objective.advanced
    assert seen == state["params/count/weight"].item() == pytest.approx(before - 0.1)  # Adam's first step
    assert not with_gradients


@pytest.mark.parametrize("slope", [1.0, math.inf])
def test_advance_writes_only_where_the_step_is_healthy(batch, slope):
    task = GradientTask(Counting(slope))
    state = make_state(task)
    run_step(task, state, batch)
    assert state["statistics/count/seen"].item() == (BATCH_SIZE if math.isfinite(slope) else 0)


def test_micro_batches_have_numbers_and_keys_of_their_own_and_share_the_steps_key(batch):
    objective = Counting()
    task = GradientTask(objective, num_micro_batches=4)
    run_step(task, make_state(task), batch)
    numbers, keys, step_keys = zip(*objective.contexts, strict=True)
    assert numbers == ((0, 4), (1, 4), (2, 4), (3, 4))
    assert len(set(keys)) == 4 and len(set(step_keys)) == 1


@pytest.mark.parametrize(("settings", "message"), [
    ({"num_micro_batches": 0}, "num_micro_batches must be at least 1, got 0"),
    ({"dtype": "float16"}, "dtype must be float32 or bfloat16, got 'float16'"),
    ({"evaluation_dtype": "float16"}, "evaluation_dtype must be float32 or bfloat16, got 'float16'"),
])
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GradientTask(Counting(), **settings)


@pytest.mark.parametrize(("settings", "message"), [
    ({"max_gradient_norm": 0.0}, "max_gradient_norm must be positive or None, got 0.0"),
    ({"max_gradient_norm": math.nan}, "max_gradient_norm must be positive or None, got nan"),
    ({"ema_decay": 1.0}, "ema_decay must be None, or at least 0 and less than 1, got 1.0"),
    ({"ema_decay": -0.1}, "ema_decay must be None, or at least 0 and less than 1, got -0.1"),
    ({"start_step": -1}, "start_step must be at least 0, got -1"),
    ({"trains": "("}, r"trains must be a regular expression, got '\('"),
])
def test_learners_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Learner("count", Count(), Recorder(), Constant(0.1)), **settings)
