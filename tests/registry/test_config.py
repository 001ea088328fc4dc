"""Loading: later bindings win, scopes, macros, plugins, text() and operative()."""
import sys

import gin
import hypothesis
import pytest
from hypothesis import strategies

from vqim.registry.config import ConfigError, load

EXAMPLE = """
WIDTH = 4
testing.toy:
  net = @testing.Net()
  optimizer = @generator/testing.Adam()
  parts = [@testing.Adam(), {'critic': @critic/testing.Adam()}]
  make_net = @testing.Net
testing.Net.width = %WIDTH
generator/testing.Adam.beta1 = 0.5
testing.Adam.beta2 = 0.999
"""


def test_a_root_gets_what_the_file_binds(load_text):
    made = load_text(EXAMPLE).call("toy")
    plain, critic = made["parts"][0], made["parts"][1]["critic"]
    assert made["net"].width == made["made"].width == 4
    assert (made["optimizer"].beta1, made["optimizer"].beta2) == (0.5, 0.999)
    assert (plain.beta1, critic.beta1) == (0.9, 0.9)


def test_the_last_flag_wins_over_earlier_flags_files_and_includes(files):
    files(a="include 'b.gin'\ntesting.toy.num_steps = 2\n", b="testing.toy.num_steps = 1\n")
    assert load(["a.gin"], [], []).call("toy")["num_steps"] == 2
    flags = ["testing.toy.num_steps = 3", "toy.num_steps = 4"]
    assert load(["a.gin"], flags, []).call("toy")["num_steps"] == 4


def test_an_argument_of_the_caller_wins_over_bindings(load_text):
    assert load_text("toy.num_steps = 2").call("toy", num_steps=5)["num_steps"] == 5


def test_a_macro_may_be_defined_after_its_use(load_text):
    assert load_text("toy.num_steps = %N", "N = 7").call("toy")["num_steps"] == 7


def test_a_load_forgets_the_one_before(load_text):
    load_text("toy.num_steps = 2")
    assert load_text("").call("toy")["num_steps"] == 1


def test_a_reference_inside_of_a_macro_is_made_in_the_macros_scope(load_text):
    # What docs/gin.md warns of: not in the scope of the component that uses the macro.
    config = load_text("toy.optimizer = %OPT\nOPT = @Adam()\nOPT/Adam.beta1 = 0.25\n")
    assert config.call("toy")["optimizer"].beta1 == 0.25
    assert config.unused() == []


def test_constants_of_gin_can_be_used_as_macros(load_text):
    gin.constant("testing.MANY", 100)
    assert load_text("toy.num_steps = %MANY").call("toy")["num_steps"] == 100


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A module outside of vqim that registers a component; returns its name."""
    (tmp_path / "somebodys_plugin.py").write_text(
        "import gin\n"
        "class Mine:\n"
        "    def __init__(self, levels: tuple[int, ...]):\n"
        "        self.levels = levels\n"
        "gin.register(Mine, module='somebody')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "somebodys_plugin"
    sys.modules.pop("somebodys_plugin")
    with gin.unlock_config():
        gin.config._REGISTRY.pop("somebody.Mine")


def test_a_plugin_is_imported_by_the_gin_file_and_again_by_its_text(load_text, plugin):
    config = load_text(f"import {plugin}\ntoy.net = @somebody.Mine()\nsomebody.Mine.levels = (8, 5)\n")
    assert config.call("toy")["net"].levels == (8, 5)
    assert config.text().startswith(f"import {plugin}\n")
    assert config.operative().startswith(f"import {plugin}\n")


def test_a_plugin_that_cannot_be_imported_is_refused_with_its_line(load_text):
    with pytest.raises(ConfigError, match=r"^a\.gin:2: the import of no_such_module failed: ModuleNotFoundError"):
        load_text("X = 1\nimport no_such_module\n")


def test_a_plugin_that_fails_while_imported_is_refused_with_its_line(load_text, tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('it broke')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"^a\.gin:1: the import of broken_plugin failed: RuntimeError: it broke"):
        load_text("import broken_plugin\n")


def test_text_loads_to_the_same_configuration(load_text):
    config = load_text(EXAMPLE)
    again = load_text(config.text())
    assert again.text() == config.text()
    assert {name: binding.value for name, binding in again.bindings.items()} == {
        name: binding.value for name, binding in config.bindings.items()
    }


def test_text_is_gin_that_gin_itself_parses(load_text):
    text = load_text(EXAMPLE).text()
    gin.clear_config()
    gin.parse_config(text)
    assert gin.get_configurable("toy")()["optimizer"].beta1 == 0.5


def test_text_has_complete_names_whatever_was_written(load_text):
    assert load_text("Net.width = 4\ntoy.net = @Net()\n").text() == (
        "testing.Net.width = 4\n\ntesting.toy.net = @testing.Net()\n"
    )


@hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(strategies.permutations(EXAMPLE.replace("testing.toy:\n  net", "testing.toy.net").replace(
    "\n  ", "\ntesting.toy.").strip().splitlines()))
def test_text_does_not_depend_on_the_order_of_the_lines(load_text, lines):
    assert load_text("\n".join(lines)).text() == load_text(EXAMPLE).text()


def test_operative_shows_defaults_of_what_was_built_and_nothing_else(load_text):
    config = load_text("toy.net = @testing.Net()\ntesting.Net.width = 4\ntesting.Adam.beta1 = 0.3\n")
    config.call("toy")
    operative = config.operative()
    assert "Net.activation = 'gelu'" in operative
    assert "Adam" not in operative


def test_an_explicit_macro_is_the_same_as_a_short_one(load_text):
    config = load_text("N/macro.value = 3\ntoy.num_steps = %N\n")
    assert config.text() == "N = 3\n\ntesting.toy.num_steps = %N\n"
    assert config.call("toy")["num_steps"] == 3


def test_the_configuration_is_locked_once_loaded(load_text):
    load_text("")
    with pytest.raises(RuntimeError, match="locked"):
        gin.bind_parameter("toy.num_steps", 3)
