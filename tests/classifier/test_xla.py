"""Samples and classifiers' logits on XLA are those of torch, and one program serves many settings."""
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
import torchvision

from vqim.checkpoint.manager import CheckpointManager
from vqim.classifier.model import ImageClassifier
from vqim.nn.module import spec
from vqim.runtime.torch import TorchRuntime
from vqim.state.leaf import prefixed
from vqim.tokenizer.vit import ViTEncoder
from vqim.training.state import TrainState, save

pytest.importorskip("torch_xla")
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xla")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), folder / "resnet.pth")
    leaves = prefixed("params/classifier/", spec(ImageClassifier(ViTEncoder(8, 4, 8, 2, 2, 8), 8, 3)))
    arrays = {name: 0.3 * torch.randn(leaf.shape) for name, leaf in leaves.items()}
    manager = CheckpointManager(folder / "checkpoints")
    save(TrainState(arrays, 1, 0), leaves, manager, TorchRuntime(), data_position={}, config="", metrics={})
    manager.wait()
    environment = os.environ | {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "1", "OMP_NUM_THREADS": "1",
                                "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = subprocess.run([sys.executable, "-m", "tests.classifier.xla_scores", str(folder)], cwd=ROOT,
                             env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_logits_on_xla_are_those_of_the_same_images_on_torch(results):
    for found in results["classifiers"]:
        assert found["gap"] < 1e-4 < 1e-2 < found["spread"]


def test_nothing_is_compiled_after_the_first_batch_and_nothing_falls_back(results):
    for found in results["classifiers"]:
        first, *later = found["compiled"]
        assert later == [first] * 2
    assert results["fallbacks"] == []


def test_xla_draws_what_torch_draws(results):
    assert all(found["drawn_alike"] for found in results["classifiers"])
    first, second = results["drawn"]
    assert first["there"] == first["here"] != second["here"] == second["there"]


def test_another_temperature_top_p_and_guidance_run_the_same_program(results):
    first, second = results["drawn"]
    assert first["compiled"] > 0 == second["compiled"]
