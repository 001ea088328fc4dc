"""Files of torch.save from elsewhere: arrays come out, and nothing that the file says is run."""
import os
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from launch.torch_weights import read_weights
from vqim.registry.config import ConfigError


@pytest.fixture
def save(tmp_path):
    """`save(content)`: a file of torch.save with it, from a process that has the modules `elsewhere`."""
    def save_content(content):
        torch.save(content, tmp_path / "weights.ckpt")
        return str(tmp_path / "weights.ckpt")
    return save_content


@pytest.fixture
def elsewhere(monkeypatch):
    """`elsewhere(name, base)`: a class of a package that is gone when the file is read."""
    module = types.ModuleType("package_of_theirs")
    monkeypatch.setitem(sys.modules, "package_of_theirs", module)

    def make(name, base):
        made = type(name, (base,), {"__module__": "package_of_theirs"})
        setattr(module, name, made)
        return made
    return make


def equal(weights, module):
    expected = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    assert weights.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(weights[name], array)


def test_a_state_dict_is_read(save):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    equal(read_weights(save(module.state_dict())), module)


def test_half_precision_becomes_float32(save):
    weights = read_weights(save({"w": torch.tensor([0.5, 2.0], dtype=torch.bfloat16)}))
    assert weights["w"].dtype == np.float32 and weights["w"].tolist() == [0.5, 2.0]


def test_a_checkpoint_of_lightning_is_read_without_lightning(save, elsewhere, monkeypatch):
    module, callback = nn.Linear(2, 3), elsewhere("ModelCheckpoint", object)
    hyper_parameters = elsewhere("AttributeDict", dict)({"lr": 1.0})
    # Old versions have classes for keys, and hyper-parameters in a dict of their own.
    path = save({"state_dict": module.state_dict(), "epoch": 3, "hyper_parameters": hyper_parameters,
                 "callbacks": {callback: {"best": torch.tensor(0.1)}}, "np": np.float64(2.0)})
    monkeypatch.delitem(sys.modules, "package_of_theirs")
    equal(read_weights(path), module)


def test_a_pickled_module_is_read_without_its_class(save, elsewhere, monkeypatch):
    made = elsewhere("Encoder", nn.Sequential)(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)))
    path = save(made)
    monkeypatch.delitem(sys.modules, "package_of_theirs")
    with pytest.raises(ModuleNotFoundError):
        torch.load(path, weights_only=False)
    equal(read_weights(path), made)


def test_a_function_that_the_file_names_is_not_called(save, tmp_path):
    class Harmful:
        def __reduce__(self):
            return exec, (f"import pathlib; pathlib.Path({str(tmp_path / 'it_ran')!r}).touch()",)

    weights = read_weights(save({"state_dict": {"w": torch.ones(2)}, "harmful": Harmful()}))
    assert weights["w"].tolist() == [1.0, 1.0]
    assert not (tmp_path / "it_ran").exists()


def test_what_torch_forbids_is_refused_and_named(save):
    class Harmful:
        def __reduce__(self):
            return os.system, ("true",)

    with pytest.raises(ConfigError, match=rf"cannot be read: .*unsupported GLOBAL {os.system.__module__}"
                                          r"\.system whose module .* is blocked. Where you trust the file, load it"):
        read_weights(save({"w": torch.ones(2), "harmful": Harmful()}))


def test_a_file_of_the_old_format_is_refused_with_a_way_out(tmp_path):
    path = str(tmp_path / "old.pkl")
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ConfigError, match="PyTorch 1.6 or newer.*Where you trust the file, load it with PyTorch, save"):
        read_weights(path)


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(2)], 5])
def test_a_file_without_weights_is_refused(save, content):
    with pytest.raises(ConfigError, match="must be files with a state_dict or a module in it, .*weights.ckpt has nei"):
        read_weights(save(content))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--weights must be a file, got .*/nothing.ckpt"):
        read_weights(str(tmp_path / "nothing.ckpt"))
