"""Which values fit which annotations."""
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytest

from vqim.registry.config_types import UNKNOWN, accepts, describe


class Speaker(typing.Protocol):
    def speak(self) -> str: ...


class Dog:
    pass


@pytest.mark.parametrize(("annotation", "value"), [
    (int, 3), (float, 3), (float, 3.5), (bool, True), (str, "a"), (None, None),
    (int | None, None), (int | None, 3), (float | str, 2), (Literal["a", 1], "a"),
    (tuple[int, ...], ()), (tuple[int, ...], (1, 2)), (tuple[int, str], (1, "a")), (tuple[()], ()),
    (tuple[tuple[int, float], ...], ((1, 2), (3, 4.5))), (tuple, (1,)), (list[str], ["a"]),
    (dict[str, int], {"a": 1}), (Mapping[str, int], {}), (Sequence[int], [1]), (Sequence[int], (1,)),
    (Callable[[], int], print), (type[Dog], Dog), (Any, 3), (typing.Annotated[int, "even"], 3),
    (int, UNKNOWN), (tuple[Dog, ...], (UNKNOWN,)), (Speaker, Dog), (object, 3),
])
def test_a_fitting_value_is_accepted(annotation, value):
    assert accepts(annotation, value)


@pytest.mark.parametrize(("annotation", "value"), [
    (int, 3.0), (int, True), (int, "3"), (int, None), (float, True), (float, "3"), (bool, 1), (str, 3), (None, 0),
    (int | None, "a"), (Literal["a", 1], "b"), (Literal["a", 1], True), (tuple[int, ...], [1]), (tuple[int, ...], 1),
    (tuple[int, ...], (1, 2.5)), (tuple[int, str], (1,)), (tuple[int, str], (1, "a", 2)), (tuple[()], (1,)),
    (list[str], ["a", 1]), (dict[str, int], {"a": "b"}), (dict[str, int], {1: 1}), (Sequence[int], ["a"]),
    (Callable[[], int], 3), (type[Dog], 3), (typing.Annotated[int, "even"], "a"),
    (Dog, 3), (Dog, Dog), (Speaker, "a"), (Speaker, 3),
])
def test_a_value_that_does_not_fit_is_refused(annotation, value):
    assert not accepts(annotation, value)


@pytest.mark.parametrize(("annotation", "words"), [
    (int, "int"), (int | None, "int or None"), (Literal["a", "b"], "one of 'a', 'b'"), (Dog, "Dog"),
    (tuple[int, ...], "tuple[int, ...]"), (Sequence[int], "Sequence[int]"),
])
def test_an_annotation_is_described_in_words(annotation, words):
    assert describe(annotation) == words
