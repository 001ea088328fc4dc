"""Training a classifier: the gradient by finite differences, separable images, data that do not fit."""
import functools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.support.steps import RUNTIME, Recorder, run_step
from vqim.classifier.model import ImageClassifier
from vqim.classifier.objective import ClassifierObjective
from vqim.contracts.context import Context
from vqim.contracts.learning import Learner
from vqim.nn.module import apply
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.state.leaf import select
from vqim.tokenizer.vit import ViTEncoder
from vqim.training.gradient_task import GradientTask
from vqim.training.state import start

COLOURS = torch.tensor([[200, 40, 40], [40, 200, 40], [40, 40, 200]], dtype=torch.uint8)


def make_task(optimizer=None, dropout_rate=0.0):
    network = ImageClassifier(ViTEncoder(8, 4, 8, 1, 2, 8, dropout_rate=dropout_rate), 8, 3)
    learner = functools.partial(Learner, optimizer=optimizer or AdamW(), learning_rate=Constant(0.01))
    return GradientTask(ClassifierObjective(network, learner))


def make_batch(batch_size=12):
    """Noise around one of three colours."""
    labels = torch.arange(batch_size) % 3
    noise = torch.randint(0, 40, (batch_size, 8, 8, 3), dtype=torch.uint8)
    return {"images": COLOURS[labels][:, None, None] + noise, "labels": labels.int(),
            "valid": torch.ones(batch_size, dtype=torch.bool)}


def classify(task, state, batch):
    """Class logits [B, Y]."""
    logits_LBY = task.objective.classify(state, batch, Context(RUNTIME.kernels)).logits_LBY
    assert len(logits_LBY) == 1
    return logits_LBY[0]


def test_the_gradient_is_that_of_the_mean_cross_entropy():
    optimizer = Recorder()
    task, batch = make_task(optimizer), make_batch()
    state = start(task.init_spec(), 0, RUNTIME).arrays
    params = {name: 0.3 * torch.randn_like(array) for name, array in select(state, "params/classifier/").items()}
    state.update({f"params/classifier/{name}": array for name, array in params.items()})
    metrics = run_step(task, state, batch)
    images = batch["images"].permute(0, 3, 1, 2) / 255

    def loss(**changed):
        logits = apply(task.objective.network.forward, params | changed, images, Context(RUNTIME.kernels))
        probabilities = logits.double().softmax(-1)
        return -probabilities[torch.arange(12), batch["labels"].long()].log().mean().item()

    assert metrics["loss"].item() == pytest.approx(loss(), rel=1e-4)
    for name in ("head/kernel_IO", "norm/gain_D", "encoder/embed/kernel_IO"):
        direction = torch.randn_like(params[name])
        ahead, behind = (loss(**{name: params[name] + sign * 1e-2 * direction}) for sign in (1, -1))
        found = (optimizer.grads[name] * direction).sum().item()
        assert found == pytest.approx((ahead - behind) / 2e-2, rel=0.02, abs=2e-4)


def test_colours_are_told_apart_after_some_steps():
    task = make_task()
    state = start(task.init_spec(), 0, RUNTIME).arrays
    metrics = [run_step(task, state, make_batch(), step) for step in range(30)]
    assert metrics[0]["loss"].item() == pytest.approx(1.0986, abs=1e-3)
    assert metrics[-1]["loss"] < 0.1 and metrics[-1]["accuracy"] == 1
    fresh = make_batch()
    logits = classify(task, state, fresh)
    assert torch.equal(logits.argmax(-1), fresh["labels"].long())
    assert F.cross_entropy(logits, fresh["labels"].long()) < 0.1


def test_dropout_acts_in_training_alone_and_anew_in_every_step():
    task, batch = make_task(Recorder(), dropout_rate=0.5), make_batch()
    state = start(task.init_spec(), 0, RUNTIME).arrays
    for name, array in state.items():
        if name.startswith("params/"):
            array.copy_(0.3 * torch.randn_like(array))
    first, again, other = (run_step(task, state, batch, step)["loss"] for step in (0, 0, 1))
    assert first == again != other
    assert torch.equal(*(classify(task, state, batch) for _ in range(2)))


def test_data_with_other_classes_or_sizes_are_refused():
    make_task().objective.check_data(SimpleNamespace(num_classes=3, image_size=8))
    with pytest.raises(ValueError, match="num_classes must be the data's 4, got 3"):
        make_task().objective.check_data(SimpleNamespace(num_classes=4, image_size=8))
    with pytest.raises(ValueError, match="image_size of the data must be 8, got 16"):
        make_task().objective.check_data(SimpleNamespace(num_classes=3, image_size=16))
