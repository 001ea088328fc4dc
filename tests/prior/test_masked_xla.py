"""The masked prior and its sampler on a mesh of eight virtual devices, beside one device and the torch runtime."""

import numpy as np
import pytest
import torch

pytest.importorskip("torch_xla")

from tests.prior.xla_masked import BATCH_SIZE, given_tokens, make_prior
from tests.support.processes import arrays_on_one_and_eight
from vqim.contracts.placing import place
from vqim.nn.module import arrays_spec
from vqim.prior.masked_sampler import MaskedSampler
from vqim.runtime.torch import TorchRuntime

NAMES = ("confidence", "scheduled", "halton")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By the number of devices, what xla_masked.py wrote."""
    return arrays_on_one_and_eight("tests.prior.xla_masked", tmp_path_factory.mktemp("masked"))


def test_a_masked_loss_its_gradient_and_its_measures_are_the_same_on_eight_devices(results):
    for name in ("loss", "gradient", "bits"):
        np.testing.assert_allclose(results[8][name], results[1][name], rtol=1e-4, atol=1e-6)
    assert np.abs(results[1]["gradient"]).max() > 1e-4


def test_masked_draws_are_the_same_on_eight_devices_and_keep_given_codes(results):
    given = given_tokens()
    for name in NAMES:
        tokens = results[8][f"tokens/{name}"]
        np.testing.assert_array_equal(tokens, results[1][f"tokens/{name}"])
        np.testing.assert_array_equal(np.where(given >= 0, tokens, given), given)
        assert tokens.min() == 0 and tokens[:, :2].max() < 5 <= tokens[:, 2:].max() < 9


def test_masked_draws_of_xla_are_those_of_torch(results):
    prior, runtime = make_prior(), TorchRuntime()
    bound = MaskedSampler(num_steps=4, order="halton").bind(prior, runtime, BATCH_SIZE, torch.float32)
    tokens = bound(place(arrays_spec(prior), 0, runtime), np.arange(BATCH_SIZE) % 3, np.arange(BATCH_SIZE), 0,
                   given_tokens())
    np.testing.assert_array_equal(tokens, results[1]["tokens/halton"])


def test_one_program_serves_all_steps_and_nothing_leaves_the_device(results):
    for found in results.values():
        # Guidance, its schedule and the number of steps are data: the second sampler has the program of the first.
        assert [found[f"compiled/{name}"].item() for name in NAMES] == [1, 0, 1]
        assert found["fallbacks"].tolist() == []
