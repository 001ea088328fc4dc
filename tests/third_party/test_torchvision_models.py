"""The adapter of torchvision's weights: what a file may hold, and what is refused."""
import pathlib

import numpy as np
import pytest
import torch
import torchvision

from vqim.third_party import torchvision_models


def write(path, value):
    torch.save(value, path)
    return str(path)


def test_it_gives_every_array_of_the_module_but_the_counters(tmp_path):
    state = torchvision.models.resnet18(num_classes=2).state_dict()
    found = torchvision_models.read_weights(write(tmp_path / "weights.pth", state))
    assert found.keys() == {name for name in state if "num_batches_tracked" not in name}
    assert all(np.array_equal(array, state[name]) and array.dtype == np.float32 for name, array in found.items())


def test_weights_in_half_precision_become_float32(tmp_path):
    path = write(tmp_path / "weights.pth", {"fc.bias": torch.tensor([0.5, 2.0]).half()})
    array = torchvision_models.read_weights(path)["fc.bias"]
    assert array.dtype == np.float32 and array.tolist() == [0.5, 2.0]


def test_the_cached_arrays_cannot_be_written_to(tmp_path):
    array = torchvision_models.read_weights(write(tmp_path / "weights.pth", {"fc.bias": torch.zeros(2)}))["fc.bias"]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return pathlib.Path.touch, (tmp_path / "it_ran",)

    with pytest.raises(ValueError, match="cannot be read as tensors"):
        torchvision_models.read_weights(write(tmp_path / "weights.pth", {"fc.bias": Harmful()}))
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("value", [torch.zeros(2), {"model": {"fc.bias": torch.zeros(2)}}, {"epoch": 3}])
def test_a_file_with_something_else_is_refused_with_the_remedy(tmp_path, value):
    with pytest.raises(ValueError, match=r"no state_dict: expected the state_dict of a torchvision ResNet"):
        torchvision_models.read_weights(write(tmp_path / "weights.pth", value))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        torchvision_models.read_weights(str(tmp_path / "weights.pth"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        torchvision_models.find_weights(str(tmp_path / "none.pth"))
