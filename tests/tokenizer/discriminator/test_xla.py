
import pytest

from tests.support.processes import printed, run_on_xla

pytest.importorskip("torch_xla")


@pytest.fixture(scope="module")
def results():
    return printed(run_on_xla("tests.tokenizer.discriminator.xla_step", num_devices=4))


@pytest.mark.parametrize("name", ["stylegan2", "patchgan"])
def test_logits_gradients_and_r1_on_four_devices_equal_those_on_torch(results, name):
    assert results["mesh"] == [4, 1, 1]
    far = {array: gap for array, gap in results["differences"][name].items() if not gap <= 1e-4}
    assert far == {}


def test_no_operation_of_a_discriminator_falls_back_to_the_cpu(results):
    assert results["fallbacks"] == []
