"""Residual and multichannel codes with upkeep, and the decoder that they modulate, on eight virtual devices and one."""

import numpy as np
import pytest

from tests.support.processes import arrays_on_one_and_eight

pytest.importorskip("torch_xla")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By the number of devices, what xla_several_codes.py wrote."""
    return arrays_on_one_and_eight("tests.tokenizer.xla_several_codes", tmp_path_factory.mktemp("several_codes"))


def test_codebooks_their_use_and_losses_are_the_same_on_eight_devices(results):
    names = [name for name in results[1] if "/quantizer/" in name]
    assert {name.rpartition("quantizer/")[2] for name in names} == {
        "top/codebook_VZ", "top/use_V", "bottom/codebook_VZ", "bottom/use_V"}
    for name in names:
        np.testing.assert_allclose(results[8][name], results[1][name], rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(results[8]["metrics"][:2], results[1]["metrics"][:2], rtol=1e-3, atol=1e-5)


def test_codes_have_restarted_at_both_levels(results):
    # What nothing chose in a step had less use than that which keeps a code: 0.9 or 0.95 of what it had.
    for level, least in (("top", 0.95), ("bottom", 0.96)):
        assert (results[1][f"statistics/tokenizer/quantizer/{level}/use_V"] >= np.float32(least)).all()


def test_the_step_compiles_once_and_nothing_leaves_the_device(results):
    for found in results.values():
        assert found["compiled"].tolist() == [1, 0, 0]
        assert found["fallbacks"].tolist() == []
