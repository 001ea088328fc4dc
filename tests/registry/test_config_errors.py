"""What is refused before any work, with file, line, what was expected, what came, and what to do."""
import pathlib
import re

import pytest

from vqim.registry.config import ConfigError, load


@pytest.mark.parametrize(("line", "message"), [
    ("testing.Ned.width = 4", "testing.Ned.width: nothing is registered as 'testing.Ned'. Did you mean testing.Net"),
    ("net.width = 4", "net.width: nothing is registered as 'net'. Did you mean testing.Net"),
    ("Net.widht = 4", "testing.Net has no parameter 'widht'. Did you mean width? It has: activation, sizes, width."),
    ("testing.Net.self = 4", "testing.Net has no parameter 'self'."),
    ("toy.net = @testing.Nett()", "@testing.Nett(): nothing is registered as 'testing.Nett'. Did you mean testing.Net"),
    ("toy.parts = [1, {'a': @Nett}]", "@Nett: nothing is registered as 'Nett'."),
    ("toy.num_steps = %NUMBER", "the macro %NUMBER is not defined. Add `NUMBER = ...` to a gin file, or"),
    ("toy.num_steps = %gin.REQUIRED", "testing.toy.num_steps is required and has no value."),
    ("NUMBER = %gin.REQUIRED", "NUMBER is required and has no value. Give it one in your gin file, or by --gin_bin"),
    ("A = [%A]", "the macro A is defined by itself."),
])
def test_a_line_that_cannot_be_meant_is_refused_with_its_number(load_text, line, message):
    with pytest.raises(ConfigError, match="^" + re.escape(f"a.gin:2: {message}")):
        load_text(f"# first line\n{line}\n")


@pytest.mark.parametrize(("line", "message"), [
    ("Net.width = '4'", "testing.Net.width expects int, got '4' (str). Write it without quotes."),
    ("Net.width = 4.0", "testing.Net.width expects int, got 4.0 (float). Write 4."),
    ("Net.width = True", "testing.Net.width expects int, got True (bool)."),
    ("Net.width = None", "testing.Net.width expects int, got None (NoneType)."),
    ("Net.width = @Adam", "testing.Net.width expects int, got @testing.Adam (type)."),
    ("Net.sizes = [1, 2]", "testing.Net.sizes expects tuple[int, ...], got [1, 2] (list). Write (1, 2)."),
    ("Net.sizes = 3", "testing.Net.sizes expects tuple[int, ...], got 3 (int). Write (3,)."),
    ("Net.sizes = (1, 'a')", "testing.Net.sizes expects tuple[int, ...], got (1, 'a') (tuple)."),
    ("generator/Adam.beta1 = 'x'", "generator/testing.Adam.beta1 expects float, got 'x' (str)."),
])
def test_a_value_of_the_wrong_type_is_refused_with_its_line(load_text, line, message):
    with pytest.raises(ConfigError, match="^" + re.escape(f"a.gin:1: {message}")):
        load_text(line)


def test_a_wrong_type_that_comes_through_a_macro_names_both_places(load_text):
    with pytest.raises(ConfigError) as refused:
        load_text("\nNet.width = %WIDTH\n", "WIDTH = 'x'")
    assert str(refused.value) == (
        "a.gin:2: testing.Net.width expects int, got 'x' (str). "
        "(WIDTH = 'x'  (--gin_bindings number 1: WIDTH = 'x'))"
    )


def test_an_int_is_a_float(load_text):
    assert load_text("toy.optimizer = @Adam()\nAdam.beta1 = 0\n").call("toy")["optimizer"].beta1 == 0


def test_a_wrong_value_that_a_later_line_replaces_is_no_error(load_text):
    assert load_text("toy.num_steps = %gin.REQUIRED\ntoy.num_steps = 'x'\n", "toy.num_steps = 3").call("toy")


def test_a_required_value_is_not_asked_for_where_every_scope_in_use_has_its_own(load_text):
    text = "Adam.beta1 = %gin.REQUIRED\ntoy.optimizer = @Adam()\ntoy.optimizer = @x/Adam()\nx/Adam.beta1 = 0.5"
    assert load_text(text).call("toy")["optimizer"].beta1 == 0.5


def test_a_required_value_of_an_included_file_is_asked_for_by_its_line(files):
    files(wiring="# what is built\nNUMBER = %gin.REQUIRED\ntoy.num_steps = %NUMBER\n", a="include 'wiring.gin'\n")
    with pytest.raises(ConfigError) as refused:
        load(["a.gin"], [], [])
    assert str(refused.value) == (
        "wiring.gin:2: NUMBER is required and has no value. Give it one in your gin file, or by "
        "--gin_bindings='NUMBER = ...'.")


@pytest.mark.parametrize("text", ["NUMBER = 3\ninclude 'wiring.gin'\n", "include 'wiring.gin'\nNUMBER = 3\n"])
def test_a_required_value_may_be_given_before_its_line_or_after(files, text):
    files(wiring="NUMBER = %gin.REQUIRED\ntoy.num_steps = %NUMBER\n", a=text)
    assert load(["a.gin"], [], []).call("toy")["num_steps"] == 3


def test_what_a_replaced_component_required_is_not_asked_for(load_text):
    config = load_text("WIDTH = %gin.REQUIRED\ntoy.net = @Net()\nNet.width = %WIDTH\n", "toy.net = None")
    assert config.text() == "testing.toy.net = None\n"


def test_all_that_is_wrong_is_listed_at_once(load_text):
    with pytest.raises(ConfigError) as refused:
        load_text("Net.widht = 4\nNet.sizes = 3\nX = %gin.REQUIRED\n", "Nett.width = 4")
    assert [line.partition(": ")[0] for line in str(refused.value).splitlines()] == [
        "a.gin:1", "--gin_bindings number 1", "a.gin:2", "a.gin:3",
    ]


def test_an_ambiguous_name_lists_the_complete_ones(load_text, register):
    def toy():
        pass

    register(toy, "testing_too")
    with pytest.raises(ConfigError, match="'toy' is ambiguous: write one of testing.toy, testing_too.toy."):
        load_text("toy.num_steps = 4\n")


def test_a_value_that_a_constructor_rejects_names_the_lines_that_made_it(load_text):
    config = load_text("WIDTH = 3\ntoy.net = @Net()\nNet.activation = 'relu'\nNet.width = %WIDTH\n", "WIDTH = 5")
    with pytest.raises(ConfigError) as refused:
        config.call("toy")
    assert str(refused.value) == (
        "testing.Net: width must be even, got 5\n"
        "  testing.Net.width = %WIDTH  (a.gin:4)\n"
        "    WIDTH = 5  (--gin_bindings number 1: WIDTH = 5)"
    )
    assert type(refused.value.__cause__) is ValueError


def test_a_rejected_value_of_a_scope_names_the_binding_that_the_scope_has(load_text):
    config = load_text("toy.make_net = @small/Net\nsmall/Net.width = 3\nNet.width = 4\nbig/Net.width = 5\n")
    with pytest.raises(ConfigError) as refused:
        config.call("toy")
    assert str(refused.value) == (
        "testing.Net in scope small: width must be even, got 3\n  small/testing.Net.width = 3  (a.gin:2)"
    )


def test_a_rejection_that_names_no_parameter_lists_all_bindings_of_the_component(load_text):
    config = load_text("toy.net = @Absent()\nAbsent.path = '/nowhere'\n")
    with pytest.raises(ConfigError) as refused:
        config.call("toy")
    assert str(refused.value) == (
        "testing.Absent: there is no folder /nowhere\n  testing.Absent.path = '/nowhere'  (a.gin:2)"
    )


def test_an_argument_without_a_value_says_what_to_add_and_who_uses_it(load_text):
    config = load_text("NET = @Net()\ntoy.net = %NET\n")
    with pytest.raises(ConfigError) as refused:
        config.call("toy")
    assert str(refused.value).splitlines()[1:] == [
        "  testing.Net.width has no value: add `testing.Net.width = ...` to a gin file",
        "  or write @testing.Net without (), where what takes it gives these values itself",
        "  used by NET = @testing.Net()  (a.gin:1)",
    ]


def test_a_value_that_the_root_itself_rejects_names_its_line(load_text):
    config = load_text("toy.num_steps = -1\n")
    with pytest.raises(ConfigError) as refused:
        config.call("toy")
    assert str(refused.value) == (
        "testing.toy: num_steps must not be negative, got -1\n  testing.toy.num_steps = -1  (a.gin:1)"
    )


@pytest.mark.parametrize("error", [ValueError("num_steps of it"), KeyError("a"), OSError(28, "b")])
def test_an_error_of_the_roots_work_passes_unchanged(load_text, error):
    def work():
        raise error

    with pytest.raises(type(error)) as raised:
        load_text("toy.num_steps = 2\n").call("toy", built=work)
    assert raised.value is error
    assert raised.value.__context__ is None


def test_a_wrong_call_of_the_root_is_no_configuration_error(load_text):
    with pytest.raises(TypeError, match="unexpected keyword argument 'nothing'"):
        load_text("").call("toy", nothing=1)


def test_a_load_without_any_file_is_refused_nothing():
    assert load([], [], []).bindings == {}


def test_a_class_that_was_meant_to_be_made_is_refused_with_what_to_write(load_text, register):
    def pair(inner: pathlib.Path):
        pass

    register(pair, "testing")
    with pytest.raises(ConfigError, match=r"expects Path, got @testing.Net \(type\). Is it to be made, with \("):
        load_text("pair.inner = @Net\n")


def test_a_disagreement_of_components_names_the_lines_of_both(load_text, register):
    class Pair:
        def __init__(self, first: object, second: object):
            self.check(first, second)

        def check(self, first, second):
            if first.width != second.width:
                raise ValueError(f"width must be the first net's {first.width}, got {second.width}")

    register(Pair, "testing")
    config = load_text(
        "WIDTH = 4\nPair.first = @a/Net()\nPair.second = @b/Net()\na/Net.width = 2\nb/Net.width = %WIDTH\n")
    with pytest.raises(ConfigError) as refused:
        config.call("Pair")
    assert str(refused.value).splitlines() == [
        "testing.Pair: width must be the first net's 2, got 4",
        "  a/testing.Net.width = 2  (a.gin:4)",
        "  b/testing.Net.width = %WIDTH  (a.gin:5)",
        "    WIDTH = 4  (a.gin:1)",
        "  testing.Pair.first = @a/testing.Net()  (a.gin:2)",
    ]
