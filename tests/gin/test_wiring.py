"""Files that others include: what they require stands in them by name, and a wiring file has no numbers."""
import re

import pytest

import vqim.registry.components  # noqa: F401  gin knows the components from here on
from tests.gin.files import ROOT
from vqim.registry import config_names
from vqim.registry.config import ConfigError, load
from vqim.registry.config_text import Binding, leaves, parse

SHARED = [path.relative_to(ROOT).as_posix() for folder in ("data", "model", "run")
          for path in sorted((ROOT / "gin" / folder).rglob("*.gin"))]
# A model that includes another one is a variant of it, and may have numbers of its own.
WIRING = [name for name in SHARED if re.match(r"gin/model/\w+\.gin", name)
          and "include 'gin/model/" not in (ROOT / name).read_text()] + [
    f"gin/run/{name}.gin" for name in ("stage1", "adversary", "stage2", "probe", "classifier")]
OVERRIDDEN = re.compile(r"^#   ([a-z]\w*[./][\w./]+): ([\w, ]+)", re.MULTILINE)


def problems(name):
    """What is wrong with a file alone, a line each."""
    try:
        load([name], [], [])
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize("name", SHARED)
def test_a_file_that_others_include_lacks_only_what_it_says_is_required(name):
    for problem in problems(name):
        assert re.match(r"gin/\S+:\d+: \S+ is required and has no value\. Give it one", problem), problem


@pytest.mark.parametrize("name", WIRING)
def test_every_required_line_of_a_wiring_file_is_asked_for_by_its_number(name):
    statements = parse((ROOT / name).read_text(), name)
    required = {f"{binding.source}: {config_names.resolve(binding).name}" for binding in statements
                if isinstance(binding, Binding) and repr(binding.value) == "%gin.REQUIRED"}
    assert required
    assert required == {problem.partition(" is required")[0] for problem in problems(name)}


@pytest.mark.parametrize("name", WIRING)
def test_a_wiring_file_has_no_numbers(name):
    for binding in parse((ROOT / name).read_text(), name):
        assert not [leaf for leaf in leaves(binding.value) if type(leaf) in (int, float)], binding


@pytest.mark.parametrize("name", SHARED)
def test_what_is_said_to_be_commonly_overridden_exists(name):
    header = re.match(r"(#.*\n)+", (ROOT / name).read_text())[0]
    for selector, parameters in OVERRIDDEN.findall(header):
        selector = selector.rpartition("/")[2]
        assert {parameter.strip() for parameter in parameters.split(",")} <= set(config_names.parameters(selector))


def test_wiring_files_say_what_is_commonly_overridden():
    said = [name for name in WIRING if OVERRIDDEN.search((ROOT / name).read_text())]
    assert sorted(said) == sorted(set(WIRING) - {"gin/model/classifier.gin"})  # whose network is its macros alone
