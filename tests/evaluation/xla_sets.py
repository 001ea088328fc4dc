"""Run by test_set_metrics_xla.py in a process of its own: distances of sets on virtual devices, and on torch.

    python -m tests.evaluation.xla_sets RESULTS.json

A tiny tokenizer's reconstructions of 50 emoji, 16 at a time, so that the last batch is filled up. Writes the results
by the runtime's name, how often each batch made XLA compile, and what fell back to the host.
"""
import json
import sys
from typing import Any

import torch_xla.debug.metrics as xla_metrics

from vqim.contracts.placing import place
from vqim.contracts.runtime import Runtime
from vqim.evaluation.extractors import VGG16Features
from vqim.evaluation.passes import Reconstructions
from vqim.evaluation.set_metrics import FeatureDistances, WaveletDistance
from vqim.frozen.vgg16 import VGG16
from vqim.nn.module import arrays_spec
from vqim.runtime.settings import XlaSettings
from vqim.runtime.torch import TorchRuntime
from vqim.runtime.xla import XlaRuntime
from vqim.state.leaf import prefixed
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.terms import L2
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.gradient_task import GradientTask

from .conftest import LEARNER, Images


def measure(runtime: Runtime) -> tuple[dict[str, Any], list[int]]:
    """The results, and XLA's compilations after each batch."""
    model = ImageTokenizer(ViTEncoder(16, 4, 16, 1, 2, 16), VectorQuantizer(16, 16, 20, 4),
                           ViTDecoder(16, 4, 16, 1, 2, 16), 16)
    task = GradientTask(TokenizerObjective(model, LEARNER, [L2()]))
    state = place(prefixed("params/tokenizer/", arrays_spec(model)), 0, runtime)
    metrics = [FeatureDistances(VGG16Features(VGG16())), WaveletDistance()]
    evaluation = Reconstructions(metrics, 16, split="train").begin(task, Images(), state, runtime)
    compiled = [xla_metrics.counter_value("UncachedCompile") or 0 for _ in evaluation]
    return evaluation.result(), compiled


if __name__ == "__main__":
    on_mesh, compilations = measure(XlaRuntime(XlaSettings()))
    fallbacks = [name for name in xla_metrics.counter_names() if name.startswith("aten::")]
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump({"xla": on_mesh, "torch": measure(TorchRuntime())[0], "compiled": compilations,
                   "fallbacks": fallbacks}, file)
