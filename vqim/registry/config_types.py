"""Checks whether a value in a gin file fits the annotation of its parameter.

It checks only what is known before anything is built: numbers, text, bools, tuples and so on, and whether a component
is given where one is needed. Everything else passes; a component checks its own arguments when it is made.
"""
import collections.abc
import inspect
import types
import typing
from typing import Any

UNKNOWN = object()
"""The result of a called reference, which is not known before the call."""

_LITERALS = (bool, int, float, str, bytes, tuple, list, dict, types.NoneType)


def accepts(annotation: Any, value: Any) -> bool:
    """Whether a parameter with this annotation may get `value`; an int is a float, a bool is neither.

    Args:
      annotation: a type, evaluated (not text).
      value: literals, classes and functions (from uncalled references), and UNKNOWN, in any nesting.
    """
    if value is UNKNOWN or annotation is Any or annotation is inspect.Parameter.empty:
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(accepts(argument, value) for argument in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is typing.Annotated:
        return accepts(arguments[0], value)
    if origin is not None:
        return _accepts_generic(origin, arguments, value)
    if annotation is None or annotation is types.NoneType:
        return value is None
    if annotation is int or annotation is float:
        return isinstance(value, (int, annotation)) and not isinstance(value, bool)
    if not inspect.isclass(annotation):
        return True
    if getattr(annotation, "_is_protocol", False):
        # The type checker says whether a class or function fits a protocol; a literal almost never does.
        return not isinstance(value, _LITERALS)
    return isinstance(value, annotation)


def describe(annotation: Any) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if annotation is types.NoneType:
        return "None"
    if origin is None and inspect.isclass(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def hint(annotation: Any, value: Any) -> str:
    """What to write instead, for common mistakes; empty for others."""
    if isinstance(value, float) and value.is_integer() and accepts(annotation, int(value)):
        return f" Write {int(value)}."
    if isinstance(value, str):
        return " Write it without quotes." * _is_number(value)
    if isinstance(value, list) and accepts(annotation, tuple(value)):
        return f" Write {tuple(value)!r}."
    if not isinstance(value, list | tuple) and accepts(annotation, (value,)):
        return f" Write ({value!r},)."
    if callable(value):
        return " Is it to be made, with () after its name?"
    return ""


def _accepts_generic(origin: Any, arguments: tuple[Any, ...], value: Any) -> bool:
    if origin is collections.abc.Callable:
        return callable(value)
    if not isinstance(value, origin):
        return False
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(accepts(arguments[0], item) for item in value)
        arguments = () if arguments == ((),) else arguments
        return len(value) == len(arguments) and all(map(accepts, arguments, value))
    if isinstance(value, dict) and len(arguments) == 2:
        key_type, item_type = arguments
        return all(accepts(key_type, key) and accepts(item_type, item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(accepts(arguments[0], item) for item in value)
    return True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
