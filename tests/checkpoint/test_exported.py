"""Networks in one file: as the safetensors library reads it, and damaged."""
import numpy as np
import pytest
import safetensors.numpy

from vqim.checkpoint.errors import CheckpointError
from vqim.checkpoint.exported import Exported, export
from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.store import HostArray, numpy_dtype

ABOUT = {"step": 3, "seed": 7, "config": "a = 'ü'"}


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    values = {f"params/{name}": generator.integers(0, 256, (3, 5, 2 * numpy_dtype(name).itemsize), np.uint8).view(
        numpy_dtype(name)) for name in ("float32", "bfloat16", "int8", "int64", "float8_e4m3fn")}
    return values | {"params/empty": np.zeros((0, 4), np.float32), "params/scalar": np.array(2.5, np.float32)}


@pytest.fixture
def path(tmp_path, arrays):
    manager = CheckpointManager(tmp_path / "checkpoints")
    manager.save(3, {name: HostArray.whole(array) for name, array in arrays.items()}, {}, config="", data_position={})
    manager.wait()
    export(tmp_path / "net.safetensors", manager.open(), {name: name for name in arrays}, ABOUT)
    return tmp_path / "net.safetensors"


def test_the_safetensors_library_reads_the_same_bits(path, arrays):
    readable = {name: array for name, array in arrays.items() if "float8" not in name}
    with safetensors.safe_open(path, "np") as file:
        assert sorted(file.keys()) == sorted(arrays)
        for name, array in readable.items():
            found = file.get_tensor(name)
            assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_what_is_written_is_read_whole_and_in_slices(path, arrays):
    exported = Exported(path)
    assert (exported.about, exported.step, exported.names()) == (ABOUT, 3, sorted(arrays))
    for name, array in arrays.items():
        assert exported.spec(name) == (array.shape, array.dtype)
        assert exported.read(name).tobytes() == array.tobytes()
    part = exported.read("params/int64", (slice(1, 3), slice(0, 2), slice(None)))
    np.testing.assert_array_equal(part, arrays["params/int64"][1:3, :2])
    with pytest.raises(ValueError, match="has no array 'params/int63'; close to it: "):
        exported.read("params/int63")


def test_any_changed_byte_is_found(path, arrays):
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1:])
        with pytest.raises(CheckpointError, match="net.safetensors is damaged"):
            exported = Exported(path)
            for name in arrays:
                exported.read(name)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_damaged(path, arrays, share):
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="net.safetensors is damaged"):
        exported = Exported(path)
        for name in arrays:
            exported.read(name)
