"""One tiny task of each objective, which trains on the same batch, and steps of them."""
import functools

import numpy as np
import torch

from tests.support.steps import RUNTIME, Recorder
from tests.tokenizer.small_discriminator import SmallDiscriminator
from vqim.classifier.model import ImageClassifier
from vqim.classifier.objective import ClassifierObjective
from vqim.contracts.learning import Learner
from vqim.frozen.from_run import FromRun
from vqim.optim.schedules import Constant
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.objective import PriorObjective
from vqim.probe.features import PixelFeatures
from vqim.probe.objective import ProbeObjective
from vqim.third_party.noto_emoji import find_dataset
from vqim.tokenizer.discriminator.adversary import Adversary
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.terms import L2, LogitLaplace
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.gradient_task import GradientTask
from vqim.training.state import start

OBJECTIVES = ("tokenizer", "adversarial tokenizer", "prior", "probe", "classifier")
NUM_CLASSES, BATCH_SIZE = 3, 8
SIZES = {"width": 16, "num_layers": 2, "num_heads": 2, "hidden": 24}


def make_tokenizer():
    """16x16 images to 4x4 tokens of 32."""
    return ImageTokenizer(ViTEncoder(16, 4, **SIZES), VectorQuantizer(16, 16, 32, code_dim=4),
                          ViTDecoder(16, 4, **SIZES), 16)


def make_objective(kind, learner, **adversary):
    """An objective of a kind, all of whose networks are trained by `learner`."""
    if kind == "tokenizer":
        return TokenizerObjective(make_tokenizer(), learner, [L2(), LogitLaplace()])
    if kind == "adversarial tokenizer":
        rival = Adversary(SmallDiscriminator(), learner, **adversary)
        return TokenizerObjective(make_tokenizer(), learner, [L2(), LogitLaplace()], adversary=rival)
    if kind == "prior":
        prior = functools.partial(AutoregressivePrior, dropout_rate=0.0, **SIZES)
        return PriorObjective(FromRun(make_tokenizer(), "nowhere"), prior, learner, NUM_CLASSES)
    if kind == "probe":
        return ProbeObjective(PixelFeatures(16), NUM_CLASSES, learner)
    return ClassifierObjective(ImageClassifier(ViTEncoder(16, 4, **SIZES), 16, NUM_CLASSES), learner)


def make_task(kind, make_optimizer=Recorder, num_micro_batches=1, adversary=None, **settings):
    """A task of a kind; `settings` are its learners'."""
    def learner(**known):
        return Learner(optimizer=make_optimizer(), **{"learning_rate": Constant(0.01)} | settings | known)

    return GradientTask(make_objective(kind, learner, **adversary or {}), num_micro_batches)


def make_batch():
    """Emoji, labels and tokens: a prior takes those of a cache."""
    with np.load(find_dataset()) as arrays:
        images = np.ascontiguousarray(arrays["images"][::240, ::4, ::4][:BATCH_SIZE])
    tokens = np.random.default_rng(0).integers(0, 32, (BATCH_SIZE, 16, 1), np.int32)
    return RUNTIME.put({"images": images, "labels": np.arange(BATCH_SIZE, dtype=np.int32) % NUM_CLASSES,
                        "tokens": tokens, "valid": np.ones(BATCH_SIZE, bool)})


def make_state(task):
    """Initial values and some noise, without frozen networks: new blocks are the identity, new heads zero."""
    spec = {name: leaf for name, leaf in task.init_spec().items() if not name.startswith("frozen/")}
    state, generator = start(spec, 0, RUNTIME).arrays, torch.Generator().manual_seed(0)
    for name, array in state.items():
        if name.startswith("params/"):
            array += 0.3 * torch.randn(array.shape, generator=generator)
    return state


def gradients(task):
    """What the task's recorders were given, by learner and name."""
    return {f"{learner.name}/{name}": grad for learner in task.objective.learners()
            for name, grad in learner.optimizer.grads.items()}


def copy(state):
    """The same values in other arrays."""
    return {name: array.clone() for name, array in state.items()}


def changed(state, before):
    """The names of the arrays that are not as they were."""
    return {name for name in before if not torch.equal(state[name], before[name])}
