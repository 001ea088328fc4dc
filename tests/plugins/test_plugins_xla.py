"""The plugins on a mesh of eight virtual devices, beside one device."""
import numpy as np
import pytest

from tests.support.processes import arrays_on_one_and_eight

pytest.importorskip("torch_xla")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By the number of devices, what xla_plugins.py wrote."""
    return arrays_on_one_and_eight("tests.plugins.xla_plugins", tmp_path_factory.mktemp("plugins"))


def test_an_ema_codebook_with_restarts_is_the_same_on_eight_devices(results):
    codebook_VZ = results[1]["statistics/tokenizer/quantizer/codebook_VZ"]
    np.testing.assert_allclose(results[8]["statistics/tokenizer/quantizer/codebook_VZ"], codebook_VZ, atol=1e-5)
    np.testing.assert_allclose(results[8]["metrics"], results[1]["metrics"], rtol=1e-4, atol=1e-5)


def test_codes_have_restarted(results):
    # A code that nothing chose in the first step had 0.9 counts then, fewer than the 0.95 that keep it; whatever
    # was chosen since has more than 1.
    assert (results[1]["statistics/tokenizer/quantizer/counts_V"] >= 0.95).all()


def test_a_frozen_stack_stays_and_costs_no_slots(results):
    assert [name for name in results[8]["slots"] if "/encoder/" in name] == []
    encoder = [name for name in results[8] if name.startswith("params/tokenizer/encoder/")]
    assert len(encoder) > 10
    assert [name for name in results[8] if name.startswith("ema/tokenizer/encoder/")] == []


def test_guided_draws_are_the_same_on_eight_devices_and_depend_on_the_scale(results):
    for scale in ("1.5", "4.0"):
        assert (results[8][f"tokens/{scale}"] == results[1][f"tokens/{scale}"]).all()
    assert (results[8]["tokens/1.5"] != results[8]["tokens/4.0"]).any()


def test_each_program_compiles_once_and_nothing_leaves_the_device(results):
    for found in results.values():
        assert found["compiled"].tolist() == [1, 0, 0]
        assert found["compiled to draw/4.0"] == 0  # the program of 1.5: the scale is data
        assert found["fallbacks"].tolist() == []
