"""Convolutional networks on XLA: nothing leaves the device, and they compute what the torch runtime computes."""
import pytest

from tests.support.processes import printed, run_on_xla

pytest.importorskip("torch_xla")


@pytest.fixture(scope="module")
def results():
    return printed(run_on_xla("tests.tokenizer.xla_cnn"))


@pytest.mark.parametrize("name", ["cnn", "dvae"])
def test_no_operation_of_a_network_or_its_gradient_falls_back_to_the_host(results, name):
    assert results[name]["aten"] == []


@pytest.mark.parametrize("name", ["cnn", "dvae"])
def test_images_and_gradients_are_those_of_the_torch_runtime(results, name):
    assert len(results[name]["gaps"]) > 30
    assert {path: gap for path, gap in results[name]["gaps"].items() if not gap < 1e-4} == {}
