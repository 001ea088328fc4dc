"""Every gin file that can be run is whole: it loads, builds without reading another run, and uses all it says."""
import io
import re

import numpy as np
import pytest
from PIL import Image

import vqim.registry.components  # noqa: F401  gin knows the components from here on
from tests.gin.files import ROOT, whole_text
from vqim.registry.config import load
from vqim.training.experiment import Experiment

try:
    import lmdb
except ImportError:
    lmdb = None

FILES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for folder in ("debug", "exp") for path in sorted((ROOT / "gin" / folder).rglob("*.gin"))
}
INCLUDED = {included for text in FILES.values() for included in re.findall(r"^include '(.*)'", text, re.MULTILINE)}
COMMAND = "#   python -m launch.train "
RUNS = [name for name, text in FILES.items()
        if COMMAND in text or name not in INCLUDED and "/shrink_" not in name]  # those change a run, and are none
MAY_BE_UNUSED = (r"runtime\.",)
"""A file may have settings for both runtimes."""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory: no run is there to be read."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Data as gin/data wants them: ImageNet's folder with a thousand classes, one without classes, LSUN's database."""
    png = io.BytesIO()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(png, "png")
    folder = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for path in [folder / f"classes/{split}/n{number:08d}" for number in range(1000)] + [folder / f"none/{split}"]:
            path.mkdir(parents=True)
            (path / "image.png").write_bytes(png.getvalue())
    if lmdb is not None:
        with lmdb.open(str(folder / "lmdb"), map_size=2**24) as database, database.begin(write=True) as transaction:
            for number in range(2000):  # of which some are in the validation split, 0.3% at the least
                transaction.put(f"{number}".encode(), png.getvalue())
    return folder


@pytest.fixture
def bindings(images):
    """`bindings(name)`: what a file leaves to the command line."""
    def of(name):
        text = whole_text(name)
        is_lsun = "gin/data/lsun.gin" in text
        if is_lsun and lmdb is None:
            pytest.skip("pip install 'vqim[lmdb]'")
        if "data.ImageFolder.path = %DATA" not in text and not is_lsun:
            return []
        (images / "vgg16.pth").touch()  # is read when a run starts
        weights = [f"VGG16_WEIGHTS = {str(images / 'vgg16.pth')!r}"] if "VGG16_WEIGHTS" in text else []
        name_of_data = "lmdb" if is_lsun else "classes" if "gin/data/imagenet.gin" in text else "none"
        return [*weights, f"DATA = {str(images / name_of_data)!r}"]
    return of


def test_there_are_files_to_run():
    assert {"gin/debug/tokenizer_tiny.gin", "gin/exp/quickstart/tokenizer.gin"} <= set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_a_gin_file_builds_without_another_run_and_uses_all_of_its_bindings(name, elsewhere, bindings):
    config = load([name], bindings(name), [])
    experiment = config.call("train")
    assert isinstance(experiment, Experiment)
    config.refuse_unused(except_for=MAY_BE_UNUSED)
    assert experiment.task.init_spec()


@pytest.mark.parametrize("name", RUNS)
def test_a_gin_files_text_and_operative_configuration_are_the_same_experiment(name, elsewhere, tmp_path, bindings):
    config = load([name], bindings(name), [])
    config.call("train")
    text, operative = config.text(), config.operative()
    for copy in (text, operative):
        (tmp_path / "copy.gin").write_text(copy)
        again = load(["copy.gin"], [], [])
        again.call("train")
        assert again.operative() == operative
        assert again.text() == text or copy == operative


@pytest.mark.parametrize("name", RUNS)
def test_a_gin_files_header_says_what_it_is_and_how_to_run_it(name):
    header = re.match(r"(#.*\n)+", FILES[name])
    assert header, "it begins with a comment"
    first, *others = header[0].splitlines()
    assert len(first) > 20
    command = next((line for line in others if line.startswith(COMMAND)), "")
    assert f" --gin_file={name} " in command
    assert " --workdir=runs/" in command


@pytest.mark.parametrize("name", sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "gin").rglob("*.gin")))
def test_a_gin_file_begins_with_a_comment(name):
    assert (ROOT / name).read_text().startswith("# ")


def test_the_folder_holds_no_python():
    assert list((ROOT / "gin").rglob("*.py")) == []
