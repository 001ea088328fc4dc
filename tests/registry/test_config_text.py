"""Reading gin files: places, order, includes, syntax errors."""
import hypothesis
import pytest
from gin import config_parser
from hypothesis import strategies

from vqim.registry import config_text
from vqim.registry.config_text import Binding, ConfigError, Import, Macro, Reference, find_file, parse, read

VALUES = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.text()
    | strategies.floats(allow_nan=False, allow_infinity=False)
    | strategies.builds(Macro, strategies.sampled_from(["A", "b/C"]))
    | strategies.builds(Reference, strategies.sampled_from(["", "s"]), strategies.just("m.X"), strategies.booleans()),
    lambda inner: strategies.lists(inner) | strategies.lists(inner).map(tuple)
    | strategies.dictionaries(strategies.text(), inner),
    max_leaves=8,
)


def test_each_kind_of_statement_is_read_with_its_line(files):
    files(a=(
        "# comment\n"
        "import math\n"
        "WIDTH = 8\n"
        "s/m.Net.width = %WIDTH\n"
        "m.Net:\n"
        "  # comment\n"
        "  sizes = (1,\n"
        "           2)\n"
        "  inner = @s/m.X()\n"
        "m.Net.make = @m.X\n"
    ))
    assert read(["a.gin"], ["a.b = 'c'"], []) == [
        Import("math", "a.gin:2"),
        Binding("", "WIDTH", "", 8, "a.gin:3"),
        Binding("s", "m.Net", "width", Macro("WIDTH"), "a.gin:4"),
        Binding("", "m.Net", "sizes", (1, 2), "a.gin:7"),
        Binding("", "m.Net", "inner", Reference("s", "m.X", True), "a.gin:9"),
        Binding("", "m.Net", "make", Reference("", "m.X", False), "a.gin:10"),
        Binding("", "a", "b", "c", "--gin_bindings number 1: a.b = 'c'"),
    ]


@hypothesis.given(VALUES)
def test_a_value_is_shown_as_gin_text_that_reads_back_to_it(value):
    (binding,) = parse(f"m.X.value = {value!r}", "text")
    assert binding.value == value


def test_an_include_takes_effect_where_it_stands(files):
    files(a="X = 1\ninclude 'b.gin'\nX = 3\n", b="X = 2\n")
    assert [(binding.value, binding.source) for binding in read(["a.gin"], [], [])] == [
        (1, "a.gin:1"), (2, "b.gin:1"), (3, "a.gin:3"),
    ]


def test_a_file_that_includes_itself_is_refused_with_the_circle(files):
    files(a="include 'b.gin'\n", b="include 'a.gin'\n")
    with pytest.raises(ConfigError, match="a.gin includes b.gin includes a.gin"):
        read(["a.gin"], [], [])


def test_a_missing_include_names_the_line_that_asks_for_it(files):
    files(a="X = 1\ninclude 'nothing.gin'\n")
    with pytest.raises(ConfigError, match=r"^a\.gin:2: There is no gin file 'nothing.gin'"):
        read(["a.gin"], [], [])


def test_a_missing_file_names_the_places_and_a_similar_file(files, tmp_path):
    files(experiment="X = 1\n")
    with pytest.raises(ConfigError) as refused:
        read(["experimnt.gin"], [], ["/nowhere"])
    assert "Did you mean experiment.gin?" in str(refused.value)
    assert str(tmp_path / "experimnt.gin") in str(refused.value)
    assert "/nowhere/experimnt.gin" in str(refused.value)


def test_the_working_directory_comes_before_search_paths_and_they_before_the_package(tmp_path, monkeypatch):
    places = [tmp_path / name for name in ("cwd", "first", "second", "site-packages/vqim")]
    for place in places:
        place.mkdir(parents=True)
    package = places[3]
    monkeypatch.chdir(places[0])
    monkeypatch.setattr(config_text, "_PACKAGE", package)
    files = [folder / "gin/a.gin" for folder in (*places[:3], package.parent)] + [package / "_gin/a.gin"]
    for file in reversed(files):
        file.parent.mkdir()
        file.write_text("X = 1\n")
        assert find_file("gin/a.gin", [str(places[1]), str(places[2])]) == file


def test_only_the_folder_gin_is_looked_for_in_the_installed_package(tmp_path, monkeypatch):
    (tmp_path / "vqim/_gin").mkdir(parents=True)
    (tmp_path / "vqim/_gin/a.gin").write_text("X = 1\n")
    monkeypatch.setattr(config_text, "_PACKAGE", tmp_path / "vqim")
    with pytest.raises(ConfigError):
        find_file("a.gin", [])


@pytest.mark.parametrize(("text", "line", "problem"), [
    ("X = 1\nY = foo\n", 2, "Failed to parse token 'foo'"),
    ("X = 1\nY\n", 2, "Couldn't parse statement"),
    ("X = 1 2\n", 1, "Expected newline"),
    ("m.X:\nwidth = 1\n", 2, "Expected indentation"),
    ("X = (1,\n", 2, "EOF in multi-line statement"),
    ("X =", 1, "Unable to parse value"),
    ("m.X:\n    a = 1\n  b = 2\n", 3, "unindent does not match"),
])
def test_wrong_syntax_is_refused_with_its_line(files, text, line, problem):
    files(a=text)
    with pytest.raises(ConfigError, match=rf"^a\.gin:{line}: not gin syntax: .*{problem}"):
        read(["a.gin"], [], [])


def test_a_parser_that_runs_past_the_end_is_wrong_syntax(monkeypatch):
    # A file must not end early and silently, as gin's own iteration would.
    def run_out(parser):
        raise StopIteration

    monkeypatch.setattr(config_parser.ConfigParser, "parse_statement", run_out)
    with pytest.raises(ConfigError, match="text:2: not gin syntax: Unexpected end"):
        parse("X = 1\n", "text")


def test_wrong_syntax_of_a_flag_names_its_number(files):
    with pytest.raises(ConfigError, match="^--gin_bindings number 2: X = foo: not gin syntax"):
        read([], ["X = 1", "X = foo"], [])


def test_dynamic_registration_is_refused_with_what_to_do_instead(files):
    files(a="from __gin__ import dynamic_registration\n")
    with pytest.raises(ConfigError, match=r"^a\.gin:1: .*gin\.register\(X, module="):
        read(["a.gin"], [], [])
