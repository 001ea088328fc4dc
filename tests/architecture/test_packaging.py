"""The wheel holds all of vqim under one name, works outside of the checkout, and leaves gin-config alone."""
import hashlib
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile

import pytest

PACKED = ("pyproject.toml", "README.md", "LICENSE", "vqim", "launch", "third_party", "gin")


def run(*command, cwd, check=True):
    """Runs a command with nothing of this checkout or of this test session in its environment."""
    hidden = ("PYTHONPATH", "PYTEST_CURRENT_TEST")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0 or not check, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy: setuptools leaves files beside what it builds."""
    root, copy = pathlib.Path(__file__).parents[2], tmp_path_factory.mktemp("checkout")
    for name in PACKED:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / name).exists():
            shutil.copy(root / name, copy / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), cwd=copy)
    (path,) = (copy / "dist").glob("*.whl")
    return path


def files_under(folder):
    """The hash of each file under a folder, but for the bytecode that running it leaves."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"
    }


class Environment:
    """A virtual environment with gin-config of its own, to which the other libraries of this one can be lent.

    They are lent while a program runs only: pip, which sees whatever Python sees, is to find nothing but gin-config.
    """

    def __init__(self, folder):
        venv.create(folder, symlinks=True)
        self.scripts = folder / "bin"
        self.packages = pathlib.Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
        for file in importlib.metadata.files("gin-config"):
            if file.suffix != ".pyc":
                (self.packages / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.locate(), self.packages / file)

    def pip(self, *arguments):
        """Runs pip on it."""
        self.packages.joinpath("lent.pth").unlink(missing_ok=True)
        run(sys.executable, "-m", "pip", "--python", str(self.scripts / "python"), *arguments, cwd=self.scripts)

    def run(self, script, *arguments, cwd, check=True):
        """Runs one of its programs, in a folder that is not the checkout."""
        self.packages.joinpath("lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
        return run(str(self.scripts / script), *arguments, cwd=cwd, check=check)


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """An environment in which the wheel is installed."""
    environment = Environment(tmp_path_factory.mktemp("environment"))
    environment.pip("install", "--no-deps", "--no-index", str(wheel))
    return environment


def test_the_wheel_has_one_top_level_name(wheel):
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"vqim"}


@pytest.mark.parametrize("folder, inside", [
    ("vqim", "vqim"), ("launch", "vqim/_launch"), ("third_party", "vqim/third_party"), ("gin", "vqim/_gin"),
])
def test_the_wheel_holds_every_file_of_the_folder(wheel, root, folder, inside):
    # But not how Bazel builds it, nor what is for readers of the source.
    here = {
        f"{inside}/{path.relative_to(root / folder).as_posix()}" for path in (root / folder).rglob("*")
        if path.is_file() and path.suffix not in (".bzl", ".md", ".pyc")
    }
    assert here - set(zipfile.ZipFile(wheel).namelist()) == set()


def test_every_launcher_has_a_console_script(root):
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    launchers = {
        path.stem for path in (root / "launch").glob("*.py") if "\ndef run() -> None:\n" in path.read_text()
    }
    assert scripts == {f"vqim-{name.replace('_', '-')}": f"vqim._launch.{name}:run" for name in launchers}


def test_a_console_script_works_outside_of_the_checkout(environment, tmp_path):
    # absl's --help ends with exit code 1.
    result = environment.run("vqim-train", "--help", cwd=tmp_path, check=False)
    assert "--gin_file" in result.stdout, result.stderr


def test_what_it_imports_is_what_the_wheel_brought(environment, tmp_path):
    found = environment.run("python", "-c", "import gin, vqim; print(gin.__file__, vqim.__file__)", cwd=tmp_path)
    assert all(pathlib.Path(path).is_relative_to(environment.packages) for path in found.stdout.split())


def test_installing_training_and_uninstalling_leaves_gin_config_whole(wheel, tmp_path):
    environment = Environment(tmp_path / "environment")
    before = files_under(environment.packages)
    environment.pip("install", "--no-deps", "--no-index", str(wheel))
    environment.run(
        "vqim-train", "--gin_file=gin/debug/tokenizer_tiny.gin", "--gin_bindings=train.num_steps = 2",
        "--runtime=torch", "--workdir=run", cwd=tmp_path,
    )
    environment.pip("uninstall", "--yes", "vqim")
    assert files_under(environment.packages) == before
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
