"""Is a run directory's configuration the same experiment?"""
import pytest

from vqim.registry.config import ConfigError
from vqim.registry.config_difference import difference


@pytest.mark.parametrize(("old", "new", "lines"), [
    ("m.A.x = 1\nm.A.y = 2\n", "# comment\nm.A.y = 2\n\nm.A.x = 1\n", []),
    ("m.A.x = 1\n", "N = 1\nm.A.x = %N\n", []),
    ("m.A.x = 1\n", "m.A.x = 1.0\n", []),
    ("m.A.x = (1, [2])\n", "N = 1\nm.A:\n  x = (%N,\n    [2])\n", []),
    ("m.A.x = 1\n", "m.A.x = 2\n", ["m.A.x was 1, now 2"]),
    ("m.A.x = 1\n", "", ["m.A.x was 1, now not set"]),
    ("", "s/m.A.x = 'a'\n", ["s/m.A.x was not set, now 'a'"]),
    ("m.A.x = @m.B()\n", "m.A.x = @m.B\n", ["m.A.x was @m.B(), now @m.B"]),
    ("m.A.x = [@m.B()]\n", "m.A.x = [@s/m.B()]\n", ["m.A.x was [@m.B()], now [@s/m.B()]"]),
    ("N = 1\nm.A.x = %N\n", "N = 2\nm.A.x = %N\n", ["m.A.x was 1, now 2"]),
    ("N = 1\n", "", []),
])
def test_what_differs_is_the_values_of_parameters(old, new, lines):
    assert difference(old, new) == lines


def test_names_that_may_change_are_not_compared():
    old, new = "m.toy.steps = 1\nm.toy.batch = 8\n", "m.toy.steps = 2\nm.toy.batch = 8\nm.evaluate.x = 1\n"
    assert difference(old, new, (r"m\.toy\.steps$", r"m\.evaluate\.")) == []
    assert difference(old, new, (r"toy\.steps", r"m\.evaluate\.")) == ["m.toy.steps was 1, now 2"]


def test_what_only_such_names_refer_to_may_change_too_in_any_scope():
    may_change = (r"m\.train\.evaluators$", r"m\.Eval\.")
    old = "m.train.net = @m.Net()\nm.Net.width = 1\n"
    new = old + ("m.train.evaluators = [@raw/m.Eval()]\nraw/m.Eval.network = @m.Judge()\nraw/m.Eval.ema = False\n"
                 "m.Judge.size = 16\n")
    assert difference(old, new, may_change) == difference(new, old, may_change) == []
    assert difference(new, new.replace("16", "32"), may_change) == []
    # What the rest refers to as well is compared, and so is what nothing refers to.
    assert difference(old, new.replace("@m.Judge()", "@m.Net()").replace("width = 1", "width = 2"), may_change) == [
        "m.Judge.size was not set, now 16", "m.Net.width was 1, now 2"]


def test_the_refusal_names_what_was_what_is_and_where_it_is_written(load_text):
    old = load_text("N = 2\ntoy.num_steps = %N\n").text()
    config = load_text("N = 2\ntoy.num_steps = %N\n", "N = 3")
    with pytest.raises(ConfigError) as refused:
        config.refuse_other_experiment(old, "/runs/a")
    assert str(refused.value) == (
        "/runs/a holds another experiment:\n"
        "  testing.toy.num_steps was 2, now 3 (a.gin:2, --gin_bindings number 1: N = 3)\n"
        "Use another --workdir, or give the values that the run there was started with."
    )


def test_the_same_experiment_is_not_refused(load_text):
    old = load_text("toy.num_steps = 2\n").text()
    load_text("N = 2\nNet.width = 4\ntoy.num_steps = %N\n").refuse_other_experiment(old, "/a", (r".*Net\.width",))
