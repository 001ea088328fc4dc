"""The reconstruction evaluator, when each of several processes loads a part of every batch."""
import dataclasses

import numpy as np
import pytest
import torch

from launch import session  # noqa: F401  registers the components
from tests.runtime.several_hosts import together
from vqim.evaluation.lpips import AlexNetLpips
from vqim.evaluation.tokenizer import ReconstructionEvaluator
from vqim.registry.config import load
from vqim.runtime.torch import TorchRuntime
from vqim.training.state import start


@pytest.fixture(scope="module")
def experiment():
    """The tokenizer of gin/debug on emoji."""
    return load(["gin/debug/tokenizer_tiny.gin"], [], []).call("train")


def test_several_processes_measure_what_one_measures_each_on_its_share_of_the_pictures(experiment):
    def measure(runtime):
        state = start(experiment.task.init_spec(), 0, runtime)
        return ReconstructionEvaluator(batch_size=96)(experiment.task, experiment.data, state.arrays, runtime)

    expected = measure(TorchRuntime())
    runtimes, results = together(2, measure)
    for result in results:
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, float):
                assert result[name] == pytest.approx(value, rel=1e-6), name
            else:
                for array, wanted in zip(_arrays(result[name]), _arrays(value), strict=True):
                    np.testing.assert_array_equal(array, wanted, err_msg=name)
    num_loaded = [sum(batch["valid"].sum() for batch in runtime.loaded) for runtime in runtimes]
    assert sum(num_loaded) == experiment.data.num_examples("validation") and max(num_loaded) - min(num_loaded) <= 48


def test_lpips_on_alexnet_is_the_mean_over_pictures_of_its_distance_to_their_8_bit_reconstructions():
    experiment = load(["gin/debug/tokenizer_tiny.gin"], ["IMAGE_SIZE = 32"], []).call("train")
    runtime, lpips = TorchRuntime(), AlexNetLpips()
    arrays = start(experiment.task.init_spec(), 0, runtime).arrays
    weights = start(lpips.init_spec(), 0, runtime).arrays
    measured = ReconstructionEvaluator(batch_size=96, lpips=lpips)(experiment.task, experiment.data, arrays, runtime)
    distances = []
    with torch.no_grad():
        for batch in experiment.data.evaluation(10, process_index=0, process_count=1):
            images_BCHW, _, reconstruction = experiment.task.reconstruct(arrays, runtime.put(batch), runtime.kernels)
            rounded_BCHW = (reconstruction.mean_BCHW.clamp(0, 1) * 255).round() / 255
            distances.append(lpips(weights, images_BCHW, rounded_BCHW).numpy()[batch["valid"]])
    assert measured["evaluation/lpips_alexnet"] == pytest.approx(np.concatenate(distances).mean(), rel=1e-4)


def _arrays(value):
    """The arrays of a result: pictures, or a histogram's values."""
    return dataclasses.astuple(value) if dataclasses.is_dataclass(value) else [value]
