"""Run by test_xla.py in a process of its own: samples on one XLA device, and what two classifiers say of them there.

    python -m tests.classifier.xla_scores FOLDER

FOLDER has resnet.pth, a ResNet-18 of three classes, and a run of `make_network`. Prints JSON: how far the scores are
from those of the same pictures on the torch runtime, and what torch_xla counted after each batch.
"""
import json
import sys

import numpy as np
import torch_xla.debug.metrics as xla_metrics

from tests.evaluation.test_rejection import make_state, make_task
from vqim.classifier.model import ImageClassifier, TrainedClassifier
from vqim.classifier.resnet import TorchvisionResNet
from vqim.evaluation.rejection import CandidateSampler
from vqim.nn.context import Context
from vqim.prior.sampler import Sampler
from vqim.runtime.runtime import to_tensor
from vqim.runtime.settings import XlaSettings
from vqim.runtime.torch import TorchRuntime
from vqim.runtime.xla import XlaRuntime
from vqim.state.leaf import Leaf
from vqim.tokenizer.model import images_to_float
from vqim.tokenizer.vit import ViTEncoder
from vqim.training.state import start

NUM_CLASSES = 3


def make_network() -> ImageClassifier:
    """For 8x8 pictures."""
    return ImageClassifier(ViTEncoder(8, 4, 8, 2, 2, 8), 8, NUM_CLASSES)


def main(folder: str) -> None:
    task, there = make_task(NUM_CLASSES), XlaRuntime(XlaSettings())
    state = {name: there.place(name, Leaf(tuple(array.shape), axes=("features",) * array.ndim),
                               lambda index, array=array: array.numpy()[index])
             for name, array in make_state(task).items()}
    classifiers = [TorchvisionResNet(f"{folder}/resnet.pth", 8, 18, NUM_CLASSES),
                   TrainedClassifier(make_network(), folder)]
    sampler = CandidateSampler(task, Sampler(task.prior, there, 4), classifiers)
    batches, compiled = [], []
    for batch in sampler(state, np.arange(12, dtype=np.int32) % NUM_CLASSES, 0):
        batches.append(batch)
        compiled.append(xla_metrics.metric_data("CompileTime")[0])
    fallbacks = [name for name in xla_metrics.counter_names() if name.startswith("aten::")]
    here = TorchRuntime()
    frozen = [start(classifier.init_spec(), 0, here).arrays for classifier in classifiers]
    gaps: list[list[float]] = [[], []]
    for batch in batches:
        images_BCHW = images_to_float(to_tensor(batch.images_BHWC))
        for m, classifier in enumerate(classifiers):
            logits_BY = classifier.logits(frozen[m], images_BCHW, Context(here.kernels))
            expected_B = logits_BY.log_softmax(-1).detach().numpy()[np.arange(len(images_BCHW)), batch.labels_B]
            gaps[m].append(float(np.abs(batch.scores_MB[m] - expected_B).max()))
    spread = [float(np.concatenate([batch.scores_MB[m] for batch in batches]).std()) for m in range(2)]
    print(json.dumps({"gaps": gaps, "spread": spread, "compiled": compiled, "fallbacks": fallbacks}))


if __name__ == "__main__":
    main(sys.argv[1])
