"""Distances of sets on a mesh of eight devices are those of one device, by one program without fallbacks."""
import json

import pytest

from tests.support.processes import run_on_xla

pytest.importorskip("torch_xla")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the script wrote, by the number of devices."""
    paths = {count: tmp_path_factory.mktemp("xla") / f"{count}.json" for count in (1, 8)}
    for count, path in paths.items():
        run_on_xla("tests.evaluation.xla_sets", path, num_devices=count)
    return {count: json.loads(path.read_text()) for count, path in paths.items()}


def test_distances_on_eight_devices_are_those_of_one(found):
    one, eight = (found[count]["results"] for count in (1, 8))
    assert one.keys() == eight.keys() >= {"evaluation/vgg_fd", "evaluation/vgg_kid", "evaluation/fwd"}
    numbers = {name: value for name, value in one.items() if isinstance(value, float)}
    assert {name: eight[name] for name in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-9)
    assert one["evaluation/vgg_fd"] > 0.1


def test_the_references_fingerprint_is_the_same_on_any_mesh(found):
    assert found[1]["results"]["protocol/fwd"] == found[8]["results"]["protocol/fwd"]


def test_nothing_is_compiled_after_the_first_batch_and_nothing_falls_back(found):
    for results in found.values():
        first, *later = results["compiled"]
        assert later == [first] * 3
        assert results["fallbacks"] == []
