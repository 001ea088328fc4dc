"""Adafactor's int8 state on eight devices against one, and through checkpoints from one mesh to another."""
import numpy as np
import pytest

from tests.optim.mesh_step import state_spec
from tests.support.processes import run_on_xla
from vqim.checkpoint.manager import CheckpointManager
from vqim.runtime.torch import TorchRuntime
from vqim.training.state import restore_arrays

pytest.importorskip("torch_xla")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mesh")
    run_on_xla("tests.optim.mesh_step", 2, 2, folder / "eight", num_devices=8, flags=None)
    run_on_xla("tests.optim.mesh_step", 1, 1, folder / "one", folder / "eight/checkpoints", flags=None)
    return folder


def test_steps_on_eight_devices_equal_those_on_one(runs):
    eight, one = (np.load(runs / name / "arrays.npz") for name in ("eight", "one"))
    moved, count = 0, 0
    for name in one.files:
        if one[name].dtype == np.int8:
            levels = np.abs(eight[name].astype(int) - one[name].astype(int))
            assert levels.max() <= 1, name
            moved, count = moved + (levels > 0).sum(), count + levels.size
        else:
            np.testing.assert_allclose(eight[name], one[name], rtol=1e-4, atol=1e-4 * np.abs(one[name]).max(),
                                       err_msg=name)
    assert count > 100_000 and moved <= 1e-4 * count


@pytest.mark.parametrize("reader", ["one device", "torch"])
def test_int8_comes_back_bit_for_bit_on_another_mesh(runs, reader):
    written = np.load(runs / "eight/arrays.npz")
    if reader == "torch":
        checkpoint = CheckpointManager(runs / "eight/checkpoints").open()
        arrays = restore_arrays(state_spec(), 0, TorchRuntime(), checkpoint)
        read = {name: array.numpy() for name, array in arrays.items()}
    else:
        read = dict(np.load(runs / "one/restored.npz"))
    assert sum(array.dtype == np.int8 for array in read.values()) == 3
    for name in written.files:
        assert read[name].dtype == written[name].dtype and read[name].tobytes() == written[name].tobytes(), name
