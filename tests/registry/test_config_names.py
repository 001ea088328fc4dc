"""Parameters of components, and their annotations."""
import dataclasses
import inspect
import typing

import pytest

from vqim.registry.config_names import parameters

if typing.TYPE_CHECKING:
    from nowhere import Unknown


@dataclasses.dataclass
class Options:
    depth: "int"
    rate: float = 0.1


def function(x, *rest, width: "int | None" = None, thing: "Unknown" = None, **more):  # noqa: UP037
    pass


class Empty:
    pass


@pytest.mark.parametrize(("component", "options", "expected"), [
    (Options, {}, {"depth": int, "rate": float}),
    (Options, {"denylist": ["rate"]}, {"depth": int}),
    (Options, {"allowlist": ["rate"]}, {"rate": float}),
    (function, {}, {"x": inspect.Parameter.empty, "width": int | None, "thing": inspect.Parameter.empty}),
    (Empty, {}, {}),
])
def test_parameters_are_those_that_gin_may_set_with_their_evaluated_annotations(register, component, options, expected):
    register(component, "testing_names", **options)
    assert parameters(f"testing_names.{component.__name__}") == expected


def test_a_typo_passes_only_where_the_component_takes_any_keyword(load_text, register):
    register(function, "testing_names")
    assert load_text("testing_names.function.anything = 3").bindings
