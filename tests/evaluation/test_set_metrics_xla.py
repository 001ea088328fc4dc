"""Distances of sets on a mesh of eight devices are those of the torch runtime, by one program without fallbacks."""
import json

import pytest

from tests.support.processes import run_on_xla

pytest.importorskip("torch_xla")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the script wrote."""
    path = tmp_path_factory.mktemp("xla") / "results.json"
    run_on_xla("tests.evaluation.xla_sets", path, num_devices=8)
    return json.loads(path.read_text())


def test_distances_on_eight_devices_are_those_of_torch(found):
    expected, eight = found["torch"], found["xla"]
    assert expected.keys() == eight.keys() >= {"evaluation/vgg_fd", "evaluation/vgg_kid", "evaluation/fwd"}
    numbers = {name: value for name, value in expected.items() if isinstance(value, float)}
    assert {name: eight[name] for name in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-9)
    assert expected["evaluation/vgg_fd"] > 0.1


def test_the_references_fingerprint_is_the_same_on_either_runtime(found):
    assert found["xla"]["protocol/fwd"] == found["torch"]["protocol/fwd"]


def test_nothing_is_compiled_after_the_first_batch_and_nothing_falls_back(found):
    first, *later = found["compiled"]
    assert later == [first] * 3
    assert found["fallbacks"] == []
