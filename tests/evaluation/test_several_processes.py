"""Passes on several processes, each with its share of the images."""
import numpy as np
import pytest

import vqim.registry.components  # noqa: F401  gin knows the components
from tests.runtime.several_hosts import together
from vqim.evaluation.extractors import VGG16Features
from vqim.evaluation.image_metrics import Distances, ShownImages
from vqim.evaluation.passes import Reconstructions
from vqim.evaluation.set_metrics import FeatureDistances, WaveletDistance
from vqim.evaluation.token_metrics import CodebookUse
from vqim.frozen.vgg16 import VGG16
from vqim.registry.config import load
from vqim.runtime.torch import TorchRuntime
from vqim.training.state import start

from .test_passes import arrays_of, measure


@pytest.fixture(scope="module")
def experiment():
    """The tokenizer of gin/debug on emoji."""
    return load(["gin/debug/tokenizer_tiny.gin"], [], []).call("train")


def test_several_processes_measure_what_one_measures_each_on_its_share_of_the_images(experiment):
    def measured(runtime):
        state = start(experiment.task.init_spec(), 0, runtime)
        sets = [FeatureDistances(VGG16Features(VGG16())), WaveletDistance()]
        evaluator = Reconstructions([Distances(), CodebookUse(), ShownImages(), *sets], batch_size=96)
        return measure(evaluator, (experiment.task, state.arrays), experiment.data, runtime)

    expected = measured(TorchRuntime())
    runtimes, results = together(2, measured)
    for result in results:
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, float):
                assert result[name] == pytest.approx(value, rel=1e-4 if "vgg_" in name else 1e-6), name
            else:
                for array, wanted in zip(arrays_of(result[name]), arrays_of(value), strict=True):
                    np.testing.assert_array_equal(array, wanted, err_msg=name)
    num_loaded = [sum(batch["valid"].sum() for batch in runtime.loaded) for runtime in runtimes]
    assert sum(num_loaded) == experiment.data.num_examples("validation") and max(num_loaded) - min(num_loaded) <= 48
