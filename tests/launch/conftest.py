"""Commands, and three finished runs of gin/debug: a tokenizer, a prior over its tokens, a probe of the prior."""
import hashlib
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.launch.verbs import Verbs
from vqim.checkpoint.manager import CheckpointManager


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A working directory with the finished runs runs/debug/{tokenizer,prior,probe}; to be read, not changed."""
    directory = tmp_path_factory.mktemp("finished")
    verbs = Verbs(directory, tmp_path_factory.mktemp("finished_logs"))
    for name in ("tokenizer", "prior", "probe"):
        verbs.train(f"{name}_tiny", workdir=f"runs/debug/{name}")
    return directory


@pytest.fixture
def verbs(tmp_path, tmp_path_factory):
    """Runs commands in an empty working directory, `tmp_path`."""
    return Verbs(tmp_path, tmp_path_factory.mktemp("logs"))


@pytest.fixture
def runs(finished, verbs):
    """The folder runs/debug with a copy of the finished runs, in the working directory of `verbs`."""
    return shutil.copytree(finished / "runs", verbs.directory / "runs") / "debug"


@pytest.fixture
def files():
    """The hash of every file under a folder, by its path."""
    def hashes(folder):
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*") if path.is_file()
        }

    return hashes


@pytest.fixture
def arrays():
    """All arrays of a checkpoint of a run by name, and its position in the data."""
    def read(run, step=None):
        checkpoint = CheckpointManager(run / "checkpoints").open(step)
        return {name: checkpoint.read(name) for name in checkpoint.names()}, checkpoint.data_position()

    return read


@pytest.fixture
def same():
    """Whether two readings of `arrays` are equal bit for bit."""
    def equal(first, second):
        (arrays_1, position_1), (arrays_2, position_2) = first, second
        return position_1 == position_2 and arrays_1.keys() == arrays_2.keys() and all(
            arrays_1[name].tobytes() == arrays_2[name].tobytes() for name in arrays_1)

    return equal


@pytest.fixture
def write_images():
    """Writes a folder with one class of small PNGs, the first few of which are cut short."""
    def write(folder, count, corrupt):
        (folder / "square").mkdir(parents=True)
        for number in range(count):
            path = folder / "square" / f"{number}.png"
            Image.fromarray(np.full([16, 16, 3], number, np.uint8)).save(path)
            if number < corrupt:
                path.write_bytes(path.read_bytes()[:50])

    return write
