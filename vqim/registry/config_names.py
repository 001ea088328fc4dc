"""Names registered with gin: resolving them, suggesting similar ones, their parameters and annotations.

gin has no public function that lists what is registered or used. So this file reads three private tables of
gin.config, and never writes them. No other file uses them.
"""
import dataclasses
import difflib
import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any

from gin import config as gin_config

from vqim.registry.config_text import Binding, ConfigError, Macro, Reference, map_leaves

MACRO = "gin.macro"


def resolve(binding: Binding) -> Binding:
    """`binding` with every name checked and written completely (`module.Name`).

    Raises:
      ConfigError: a component or parameter is unknown or ambiguous; the message suggests similar names.
    """
    def resolved(leaf: Any) -> Any:
        if isinstance(leaf, Reference):
            return dataclasses.replace(leaf, selector=complete(leaf.selector, binding.source, repr(leaf)))
        return leaf

    value = map_leaves(resolved, binding.value)
    if not binding.parameter:
        return dataclasses.replace(binding, value=value)
    selector = complete(binding.selector, binding.source, binding.name)
    if selector == MACRO:  # the long form of a macro: `NAME/macro.value = ...`
        *scope, name = binding.scope.split("/")
        return dataclasses.replace(binding, scope="/".join(scope), selector=name, parameter="", value=value)
    accepted = parameters(selector)
    if binding.parameter not in accepted and not _takes_any_keyword(selector):
        raise ConfigError(
            f"{binding.source}: {selector} has no parameter {binding.parameter!r}."
            f"{did_you_mean(binding.parameter, accepted)} It has: {', '.join(sorted(accepted)) or 'none'}."
        )
    return dataclasses.replace(binding, selector=selector, value=value)


def complete(selector: str, source: str, written: str) -> str:
    """The registered name that ends in `selector`.

    Args:
      selector: all or the last parts of a registered name.
      source: where it was written, for the message.
      written: the text that contains it, for the message.

    Raises:
      ConfigError: there is none, or more than one.
    """
    matches = gin_config._REGISTRY.matching_selectors(selector)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(f"{source}: {written}: {selector!r} is ambiguous: write one of {', '.join(sorted(matches))}.")
    raise ConfigError(
        f"{source}: {written}: nothing is registered as {selector!r}.{did_you_mean(selector, _registered())} "
        "(A component of your own: `import` its module at the top of the gin file.)"
    )


def registered(selector: str) -> Any:
    """The class or function that is registered under a complete name."""
    return gin_config._REGISTRY[selector].wrapped


def constructor(selector: str) -> Callable[..., Any]:
    """The function that makes a component: the function itself, or a class's `__init__`."""
    wrapped = registered(selector)
    return inspect.unwrap(wrapped.__init__ if inspect.isclass(wrapped) else wrapped)


def selector_of(name: str, description: str) -> str | None:
    """The complete name of the component that gin's messages call `name` and show as `description`."""
    for selector, entry in gin_config._REGISTRY.items():
        if entry.name == name and str(entry.wrapped) == description:
            return selector
    return None


def parameters(selector: str) -> dict[str, Any]:
    """Name -> annotation of each parameter that gin may set; `inspect.Parameter.empty` where it cannot be evaluated."""
    entry = gin_config._REGISTRY[selector]
    function = constructor(selector)
    found = {}
    for name, parameter in inspect.signature(entry.wrapped).parameters.items():
        settable = name not in (entry.denylist or ()) and (not entry.allowlist or name in entry.allowlist)
        if settable and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            found[name] = _evaluated(parameter.annotation, getattr(function, "__globals__", {}))
    return found


def undefined_macros(value: Any, macros: Iterable[str]) -> list[str]:
    """A message for each macro in `value` that is neither in `macros` nor one of gin's constants."""
    names = list(macros)
    undefined: list[str] = []

    def note(leaf: Any) -> Any:
        if isinstance(leaf, Macro) and leaf.name not in names and not is_constant(leaf.name):
            undefined.append(
                f"the macro {leaf!r} is not defined.{did_you_mean(leaf.name, names)} "
                f"Add `{leaf.name} = ...` to a gin file, or --gin_bindings='{leaf.name} = ...'."
            )
        return leaf

    map_leaves(note, value)
    return undefined


def is_constant(name: str) -> bool:
    """Whether `%name` is a gin.constant, such as gin.REQUIRED."""
    return bool(gin_config._CONSTANTS.matching_selectors(name))


def used_parameters() -> dict[tuple[str, str], set[str]]:
    """(scope, complete name) of every component called -> the parameters that gin supplied or could have supplied."""
    return {key: set(values) for key, values in dict(gin_config._OPERATIVE_CONFIG).items()}


def _registered() -> list[str]:
    return [selector for selector, _ in gin_config._REGISTRY.items() if not selector.startswith("gin.")]


def _takes_any_keyword(selector: str) -> bool:
    signature = inspect.signature(registered(selector))
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    """Evaluates an annotation written as text; `empty` where its names exist only for type checkers."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return typing.get_type_hints(type("Holder", (), {"__annotations__": {"it": annotation}}), names)["it"]
    except (NameError, AttributeError, TypeError, SyntaxError):
        return inspect.Parameter.empty


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Up to three names whose last part is similar to that of `name`, ignoring case and module."""
    def closeness(candidate: str) -> float:
        last, wanted = (text.lower().rpartition(".")[2] for text in (candidate, name))
        return difflib.SequenceMatcher(None, last, wanted).ratio()

    similar = sorted((candidate for candidate in known if closeness(candidate) >= 0.65), key=closeness, reverse=True)
    return f" Did you mean {' or '.join(similar[:3])}?" if similar else ""
