"""Bindings that nothing uses."""
import pytest

from vqim.registry.config import ConfigError


def unused(config, *except_for):
    config.call("toy")
    return [binding.source for binding in config.unused(except_for)]


def test_what_is_used_directly_in_a_scope_or_through_a_macro_is_not_listed(load_text):
    assert unused(load_text(
        "WIDTH = 4\nOUTER = %WIDTH\nNet.width = %OUTER\n"
        "toy.make_net = @big/Net\nbig/Net.sizes = (2, 2)\ntoy.optimizer = @a/b/Adam()\na/Adam.beta1 = 0.5\n"
    )) == []


def test_a_component_that_is_never_built_is_listed(load_text):
    assert unused(load_text("toy.num_steps = 2\nAdam.beta1 = 0.5\n")) == ["a.gin:2"]


def test_a_scope_that_nothing_is_called_in_is_listed(load_text):
    text = "toy.optimizer = @generator/Adam()\ngenerator/Adam.beta1 = 0.5\ngenrator/Adam.beta2 = 0.5\n"
    assert unused(load_text(text)) == ["a.gin:3"]


def test_a_macro_that_nothing_uses_is_listed(load_text):
    assert unused(load_text("N = 2\nM = 3\ntoy.num_steps = %N\n")) == ["a.gin:2"]


def test_a_value_that_every_scope_replaces_is_listed_with_what_replaces_it(load_text):
    config = load_text("toy.optimizer = @generator/Adam()\nAdam.beta1 = 0.5\ngenerator/Adam.beta1 = 0.3\n")
    assert unused(config) == ["a.gin:2"]
    with pytest.raises(ConfigError, match=r"\(a.gin:2\); used instead: generator/testing.Adam.beta1\n"):
        config.refuse_unused()


def test_a_value_that_the_caller_gives_is_listed(load_text):
    config = load_text("toy.num_steps = 2\n")
    config.call("toy", num_steps=3)
    assert [binding.name for binding in config.unused()] == ["testing.toy.num_steps"]


def test_a_binding_that_a_later_one_replaced_is_not_listed(load_text):
    assert unused(load_text("toy.num_steps = 2\n", "toy.num_steps = 3")) == []


def test_another_verbs_bindings_and_all_they_refer_to_can_be_excepted(load_text):
    config = load_text(
        "N = 5\nNET = @Net()\nWIDTH = 4\n"
        "judge.num_images = %N\njudge.net = %NET\nNet.width = %WIDTH\nAdam.beta1 = 0.5\n"
    )
    assert unused(config, r"testing\.judge\.") == ["a.gin:7"]
    assert len(unused(config)) == 7


def test_the_refusal_lists_line_and_binding(load_text):
    config = load_text("\nAdam.beta1 = 0.5\n")
    with pytest.raises(ConfigError, match=r"Nothing uses these bindings:\n  testing.Adam.beta1 = 0.5  \(a.gin:2\)\n"):
        config.call("toy", built=config.refuse_unused)


def test_nothing_unused_is_no_refusal(load_text):
    config = load_text("toy.num_steps = 2\n")
    assert config.call("toy", built=config.refuse_unused)["num_steps"] == 2


def test_what_only_a_replaced_line_referred_to_goes_with_it(load_text):
    text = "toy.net = @Net()\nWIDTH = 4\nNet.width = %WIDTH\ntoy.optimizer = @Adam()\nAdam.beta1 = 0.5\n"
    config = load_text(text, "toy.net = None")
    assert unused(config) == []
    assert config.text().split("\n") == [
        "testing.Adam.beta1 = 0.5", "", "testing.toy.net = None", "testing.toy.optimizer = @testing.Adam()", ""]


def test_what_a_replaced_line_and_another_referred_to_stays(load_text):
    config = load_text("toy.net = @Net()\ntoy.make_net = @Net\nWIDTH = 4\nNet.width = %WIDTH\n", "toy.net = None")
    assert config.call("toy")["made"].width == 4


def test_a_value_for_a_component_that_was_replaced_before_is_listed(load_text):
    config = load_text("toy.net = @Net()\nNet.width = 4\ntoy.net = None\n", "Net.width = 6")
    assert unused(config) == ["--gin_bindings number 1: Net.width = 6"]


def test_a_misspelt_macro_gets_the_name_that_it_may_be(load_text):
    config = load_text("NUM_STEPS = 2\ntoy.num_steps = %NUM_STEPS\n", "NUM_STEP = 3")
    config.call("toy")
    with pytest.raises(ConfigError, match=r"NUM_STEP = 3  \(.*\) Did you mean NUM_STEPS\?\n"):
        config.refuse_unused()
