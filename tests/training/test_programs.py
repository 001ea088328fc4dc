"""Tasks of several programs: what the loop runs, shows and counts, and restarts of adversarial runs."""
import functools
import json

import numpy as np
import pytest

from tests.tokenizer.small_discriminator import SmallDiscriminator
from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.policy import KeepLatest
from vqim.contracts.learning import Learner
from vqim.data.images import Images
from vqim.data.source import Emoji
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.runtime.torch import TorchRuntime
from vqim.state.health import check_finite, health_spec
from vqim.state.leaf import Leaf
from vqim.tokenizer.discriminator.adversary import Adversary
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.terms import L2, LogitLaplace
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.experiment import Experiment
from vqim.training.gradient_task import GradientTask
from vqim.training.loop import check_batch_size, train
from vqim.training.summaries import read_metrics


class Penalised:
    """A task, and its objective: counts its steps; every third has a penalty, which takes a matrix product."""

    checked = ["loss"]
    num_micro_batches = 1

    def __init__(self):
        self.objective = self

    def init_spec(self):
        return {"params/steps": Leaf(()), **health_spec(self.checked)}

    def check_data(self, data):
        pass

    def check_batch(self, batch_size):
        pass

    def host_scalars(self, step):
        return {"learning_rate": 0.5, "weight": 0.0}

    def program(self, step):
        return "with_penalty" if step % 3 == 0 else "train"

    def train_step(self, state, batch, scalars, kernels, program):
        loss = state["params/steps"] + 1
        keep = check_finite(state, [loss], scalars["step"])
        state["params/steps"].add_(keep)
        if program == "train":
            return {"loss": loss}
        product = batch["matrix"] @ batch["matrix"]
        return {"penalty": 10 * loss + 0 * product.sum(), "weight": loss, "loss": loss}

    def describe(self):
        return {"steps": 1}


class Matrices:
    """The same 10x10 matrix for ever."""

    num_skipped, image_size, class_names = 0, 1, ()

    def num_examples(self, split):
        return 1

    def training(self, batch_size, seed, **processes):
        return self

    def __next__(self):
        return {"matrix": np.eye(10, dtype=np.float32)}

    def position(self):
        return {}

    def close(self):
        pass


class CountingRuntime(TorchRuntime):
    """Counts what it is asked to compile."""

    num_compiled = 0

    def compile(self, function):
        self.num_compiled += 1
        return function


@pytest.fixture(name="finished")
def finished_run(tmp_path):
    """Seven steps, read every three; (runtime, rows of metrics)."""
    runtime = CountingRuntime()
    train(Experiment(Penalised(), Matrices(), 7, 1, log_every=3), workdir=tmp_path, runtime=runtime, config="")
    return runtime, read_metrics(tmp_path)


def test_each_program_is_compiled_once(finished):
    assert finished[0].num_compiled == 2


def test_a_metric_is_the_mean_over_the_steps_that_have_it(finished):
    rows = [(row["step"], row["loss"], row["penalty"]) for row in finished[1]]
    assert rows == [(3, 2.0, 10.0), (6, 5.0, 40.0), (7, 7.0, 70.0)]


def test_what_a_step_measures_is_shown_before_what_the_host_says(finished):
    assert [(row["learning_rate"], row["weight"]) for row in finished[1]] == [(0.5, 1.0), (0.5, 4.0), (0.5, 7.0)]


def test_operations_are_those_of_the_steps_that_were_made(finished):
    flops = [row["speed/model_tflops_per_second"] * row["speed/step_seconds"] * 1e12 for row in finished[1]]
    assert flops == pytest.approx([2000 / 3, 2000 / 3, 2000])


def test_a_batch_must_fit_devices_times_micro_batches():
    runtime = TorchRuntime()
    runtime.num_batch_shards = 8
    check_batch_size(32, runtime, 4)
    with pytest.raises(ValueError, match="multiple of 32, the devices that share a batch times 4 micro-batches, and"):
        check_batch_size(40, runtime, 4)
    with pytest.raises(ValueError, match="multiple of 8, the devices that share a batch, and of 1 processes; got 9"):
        check_batch_size(9, runtime, 1)


NUM_STEPS, START, EVERY = 9, 3, 2


def experiment(num_steps):
    """A tiny tokenizer whose adversary comes at step 3, with R1 in steps 3, 5 and 7."""
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "hidden": 16, "dropout_rate": 0.1}
    model = ImageTokenizer(
        ViTEncoder(16, 4, **sizes), VectorQuantizer(16, 16, 32, code_dim=4), ViTDecoder(16, 4, **sizes), 16)
    learner, discriminators = (
        functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(1e-2)) for _ in range(2))
    adversary = Adversary(SmallDiscriminator(), discriminators, start_step=START, r1_every=EVERY, lecam_weight=0.1,
                          adaptive_layer="decoder/head/contract/kernel_IO")
    objective = TokenizerObjective(model, learner, [L2(), LogitLaplace()], adversary=adversary)
    task = GradientTask(objective, num_micro_batches=2)
    return Experiment(task, Images(Emoji, 16), num_steps, 8, log_every=1, save_every=1, keep=(KeepLatest(NUM_STEPS),))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run in one go, and one that ends after every step and goes on from its checkpoint."""
    directory, runtime = tmp_path_factory.mktemp("runs"), TorchRuntime()
    train(experiment(NUM_STEPS), workdir=directory / "whole", runtime=runtime, config="")
    for num_steps in range(1, NUM_STEPS + 1):
        train(experiment(num_steps), workdir=directory / "stopped", runtime=runtime, config="")
    return directory


@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))
def test_an_adversarial_run_resumed_at_any_step_has_the_bits_of_an_uninterrupted_one(runs, step):
    whole, stopped = (CheckpointManager(runs / run / "checkpoints").open(step) for run in ("whole", "stopped"))
    assert {name: stopped.read(name).tobytes() for name in stopped.names()} == {
        name: whole.read(name).tobytes() for name in whole.names()}


def test_the_discriminator_is_in_checkpoints_and_changes_from_the_start_on(runs):
    manager = CheckpointManager(runs / "whole/checkpoints")
    arrays = [{name: manager.open(step).read(name) for name in manager.open(step).names() if "/discriminator/" in name}
              for step in (START, START + 1)]
    at_start, after = arrays
    assert {name.split("/")[0] for name in at_start} == {"params", "optimizer", "statistics"}
    assert all(not array.any() for name, array in at_start.items() if not name.startswith("params/"))
    assert [name for name in after if np.array_equal(at_start[name], after[name])] == []


def test_terms_of_the_discriminator_are_in_the_summaries_of_their_steps_alone(runs):
    rows = [json.loads(line) for line in (runs / "whole/metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert [row["step"] - 1 for row in rows if "discriminator/loss" in row] == list(range(START, NUM_STEPS))
    assert [row["step"] - 1 for row in rows if "discriminator/r1" in row] == list(range(START, NUM_STEPS, EVERY))
    assert [row["weight/adversarial"] > 0 for row in rows] == [False] * START + [True] * (NUM_STEPS - START)
