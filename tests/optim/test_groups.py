import pytest

from vqim.optim.groups import Group, Treatment, assign
from vqim.state.leaf import Leaf

SPEC = {
    "embedding/table": Leaf((16, 8), axes=("vocabulary", "features")),
    "positions": Leaf((4, 4, 8), axes=("height", "width", "features")),
    "blocks/mlp/kernel": Leaf((3, 8, 32), axes=("layers", "in", "out")),
    "blocks/mlp/bias": Leaf((3, 32), axes=("layers", "features")),
    "stem/kernel": Leaf((8, 3, 2, 2), axes=("out", "in", "kh", "kw")),
    "norm/gain": Leaf((8,), axes=("features",)),
    "temperature": Leaf(()),
}


def test_matrices_and_tables_are_decayed_but_vectors_are_not_even_when_stacked():
    decays = {name: t.weight_decay for name, t in assign(SPEC, [Group()], 0.1).items()}
    assert decays == {
        "embedding/table": 0.1, "positions": 0.1, "blocks/mlp/kernel": 0.1, "stem/kernel": 0.1,
        "blocks/mlp/bias": 0.0, "norm/gain": 0.0, "temperature": 0.0,
    }


def test_a_group_overrides_decay_and_scales_the_rate():
    groups = [Group("embedding/.*", 0.5, weight_decay=0.0), Group("(?!embedding/).*")]
    treatments = assign(SPEC, groups, 0.1)
    assert treatments["embedding/table"] == Treatment(0.5, 0.0)
    assert treatments["blocks/mlp/kernel"] == Treatment(1.0, 0.1)


@pytest.mark.parametrize("groups", [[Group("embedding/.*")], [Group("embedding/.*"), Group(".*")]])
def test_a_parameter_in_no_group_or_in_two_is_refused(groups):
    with pytest.raises(ValueError, match="must match exactly one group"):
        assign(SPEC, groups, 0.1)


def test_a_group_that_holds_nothing_is_refused():
    with pytest.raises(ValueError, match="embeding"):
        assign(SPEC, [Group("embeding/.*"), Group("(?!embeding/).*")], 0.1)


def test_a_group_that_holds_untrained_parameters_alone_is_no_error():
    params = {name: leaf for name, leaf in SPEC.items() if not name.startswith("embedding/")}
    groups = [Group("embedding/.*"), Group("(?!embedding/).*")]
    assert assign(params, groups, 0.1, untrained=["embedding/table"]).keys() == params.keys()


@pytest.mark.parametrize("arguments, message", [
    ({"pattern": "("}, "pattern must be a regular expression"),
    ({"learning_rate_multiplier": -1.0}, "learning_rate_multiplier must be"),
    ({"weight_decay": -0.1}, "weight_decay must be"),
])
def test_impossible_group_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Group(**arguments)
