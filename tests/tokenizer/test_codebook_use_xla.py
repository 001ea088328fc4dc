"""The entropy of a batch's use and k-means do not depend on the number of devices, and stay on them."""

import numpy as np
import pytest

from tests.support.processes import printed, run_on_xla

pytest.importorskip("torch_xla")


@pytest.fixture(scope="module")
def results():
    return tuple(printed(run_on_xla("tests.tokenizer.xla_codebook_use", num_devices=count, timeout=600))
                 for count in (1, 8))


def test_eight_devices_have_the_entropy_and_the_codebook_of_one(results):
    one, eight = results
    assert (one["num_devices"], eight["num_devices"]) == (1, 8)
    for ours, theirs in zip(eight["losses"], one["losses"], strict=True):
        assert theirs["loss/entropy"] > 1e-4
        assert ours["loss/entropy"] == pytest.approx(theirs["loss/entropy"], rel=1e-3)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    np.testing.assert_allclose(eight["codebook"], one["codebook"], rtol=1e-3, atol=1e-3)


def test_nothing_leaves_the_device(results):
    assert results[0]["fallbacks"] == results[1]["fallbacks"] == []
