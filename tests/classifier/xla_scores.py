"""Run by test_xla.py in a process of its own: samples on one XLA device, and what two classifiers say of them there.

    python -m tests.classifier.xla_scores FOLDER

FOLDER has resnet.pth, a ResNet-18 of three classes, and a run of `make_network`. Prints JSON: how far the logits are
from those of the same images on the torch runtime, whether these images are drawn there too, what torch_xla counted
after each batch, and of samplers with other settings whether they drew what torch draws and what each compiled.
"""
import json
import sys

import numpy as np
import torch
import torch_xla.debug.metrics as xla_metrics

from tests.evaluation.test_rejection import make_state, make_task
from vqim.classifier.model import ImageClassifier, TrainedClassifier
from vqim.contracts.context import Context
from vqim.evaluation.passes import evaluate
from vqim.evaluation.rejection import Rejection
from vqim.evaluation.samples import Samples
from vqim.frozen.resnet import TorchvisionResNet
from vqim.prior.sampler import StepwiseSampler
from vqim.runtime.arrays import to_tensor
from vqim.runtime.settings import XlaSettings
from vqim.runtime.torch import TorchRuntime
from vqim.runtime.xla import XlaRuntime
from vqim.state.leaf import Leaf, select
from vqim.tokenizer.model import images_to_float
from vqim.tokenizer.vit import ViTEncoder
from vqim.training.state import start

NUM_CLASSES = 3
LABELS = np.arange(12, dtype=np.int32) % NUM_CLASSES
SETTINGS = [{"temperature": 0.8, "top_p": 0.9, "guidance": 2.0}, {"temperature": 1.5, "top_p": 0.6, "guidance": 3.5}]


def make_network() -> ImageClassifier:
    """For 8x8 images."""
    return ImageClassifier(ViTEncoder(8, 4, 8, 2, 2, 8), 8, NUM_CLASSES)


def num_compiled() -> int:
    """How many programs have been compiled so far."""
    return (xla_metrics.metric_data("CompileTime") or (0,))[0]


class Seen(Rejection):
    """What a rejection observes, in arrays of all samples, and what was compiled after each batch."""

    def tally(self, about):
        self.all: dict[str, list[np.ndarray]] = {}
        return self

    def add(self, observed, valid_B):
        for name, value in {**observed, "compiled": np.array([num_compiled()])}.items():
            self.all.setdefault(name, []).append(value)

    def result(self):
        return {}


class OnlyImages(Seen):
    """Samples without a classifier."""

    frozen = {}

    def __init__(self):
        self._classifiers = {}


def observe(task, state, runtime, metric: Seen, batch_size: int) -> dict[str, np.ndarray]:
    """Four samples of each class, as a metric sees them."""
    samples = Samples([metric], num_images=4, batch_size=batch_size)
    evaluate(samples.begin(task, None, state, runtime))
    return {name: np.concatenate(values)[:12] for name, values in metric.all.items()}


def main(folder: str) -> None:
    task, there, here = make_task(NUM_CLASSES), XlaRuntime(XlaSettings()), TorchRuntime()
    on_host = make_state(task)
    state = {name: there.place(name, Leaf(tuple(array.shape), axes=("features",) * array.ndim),
                               lambda index, array=array: array.numpy()[index])
             for name, array in on_host.items()}
    images = observe(task, on_host, here, OnlyImages(), 5)["images"]
    results = []
    for classifier in (TorchvisionResNet(f"{folder}/resnet.pth", 8, 18, NUM_CLASSES),
                       TrainedClassifier(make_network(), folder)):
        seen = observe(task, state, there, Seen(classifier), 4)
        frozen, logits = start(classifier.init_spec(), 0, here).arrays, seen["logits/classifier"]
        expected = classifier(frozen, images_to_float(to_tensor(seen["images"])), context=Context(here.kernels))
        results.append({"gap": float(np.abs(logits - expected.detach().numpy()).max()), "spread": float(logits.std()),
                        "compiled": seen["compiled"].tolist(), "drawn_alike": bool((seen["images"] == images).all())})
    drawn = []
    for settings in SETTINGS:
        before, tokens = num_compiled(), []
        for runtime, arrays in ((there, state), (here, on_host)):
            draw = StepwiseSampler(**settings).bind(task.objective.prior, runtime, 12, torch.float32)
            tokens_BNK = draw(select(arrays, "params/prior/"), LABELS, np.arange(12), 7)
            tokens.append(runtime.fetch([tokens_BNK])[0].tolist())
        drawn.append({"there": tokens[0], "here": tokens[1], "compiled": num_compiled() - before})
    fallbacks = [name for name in xla_metrics.counter_names() if name.startswith("aten::")]
    print(json.dumps({"classifiers": results, "drawn": drawn, "fallbacks": fallbacks}))


if __name__ == "__main__":
    main(sys.argv[1])
