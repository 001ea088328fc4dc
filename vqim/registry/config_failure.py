"""Says which lines of the gin files made a component's constructor fail."""
import inspect
import re
from types import CodeType
from typing import Any, NamedTuple

from gin import config as gin_config
from gin import utils as gin_utils

from vqim.registry import config_names
from vqim.registry.config_text import Binding, ConfigError, Macro, Reference, leaves

# What gin.config 0.5.0 appends to the message of an error, once for each call of a component that it passes through.
_CALL = re.compile(r"\n  In call to configurable '(?P<name>[^']+)' \((?P<wrapped>.*?)\)(?: in scope '(?P<scope>[^']*)')?$")
_NOT_SUPPLIED = re.compile(r"No values supplied by Gin or caller for arguments: \[(.*)\]")


class _Call(NamedTuple):
    selector: str
    scope: str
    missing: list[str]


def explain(error: Exception, root: str, bindings: dict[str, Binding]) -> tuple[Exception, str]:
    """Finds the error that was raised in the first place and, if a value of a component caused it, says where it is.

    Args:
      error: what a call of the root raised.
      root: complete name of the root.
      bindings: what was loaded, by name.

    Returns:
      The error as it was raised, and a message, empty where the configuration is not the cause: errors of
      other types, and those of the root's own work after it checked its arguments.
    """
    cause, calls = _unwrap(error)
    if not calls or isinstance(cause, ConfigError) or not isinstance(cause, ValueError | TypeError | OSError):
        return cause, ""
    call = calls[0]
    if call.selector == root and not _raised_by_itself(cause, root):
        return cause, ""
    lines = [f"{call.selector}{f' in scope {call.scope}' * bool(call.scope)}: {cause}"]
    for parameter in call.missing:
        lines.append(f"  {call.selector}.{parameter} has no value: add `{call.selector}.{parameter} = ...` to a gin file.")
    given = _given(call, bindings)
    named = [binding for binding in given if re.search(rf"\b{re.escape(binding.parameter)}\b", str(cause))]
    for binding in named or given:
        lines += [f"  {line}" for line in _with_macros(binding, bindings)]
    if not given:
        lines += [f"  Nothing is bound for it; it is named in {binding}" for binding in _users(call, bindings)]
    return cause, "\n".join(lines)


def _unwrap(error: Exception) -> tuple[Exception, list[_Call]]:
    """The error without gin's decorated copies of it, and the calls that it passed through, innermost first."""
    calls: list[_Call] = []
    while type(error).__str__.__module__ == gin_utils.__name__ and isinstance(error.__context__, Exception):
        inner = error.__context__
        added = str(error)[len(str(inner)):]
        match = _CALL.search(added)
        selector = match and config_names.selector_of(match["name"], match["wrapped"])
        if match and selector:
            arguments = _NOT_SUPPLIED.search(added)
            missing = re.findall(r"'(\w+)'", arguments[1]) if arguments else []
            calls.insert(0, _Call(selector, match["scope"] or "", [name for name in missing if name != "self"]))
        error = inner
    return error, calls


def _raised_by_itself(error: Exception, selector: str) -> bool:
    """Whether the error comes from the component's own body, or from calling it with the wrong arguments."""
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    wrapped: Any = config_names.registered(selector)
    body: CodeType = inspect.unwrap(wrapped.__init__ if inspect.isclass(wrapped) else wrapped).__code__
    return traceback is not None and (
        traceback.tb_frame.f_code is body or traceback.tb_frame.f_code.co_filename == gin_config.__file__
    )


def _given(call: _Call, bindings: dict[str, Binding]) -> list[Binding]:
    """The bindings in effect in the call: of each parameter, that of the longest scope."""
    parts = call.scope.split("/") if call.scope else []
    scopes = ["/".join(parts[:length]) for length in range(len(parts) + 1)]
    given: dict[str, Binding] = {}
    for scope in scopes:
        for binding in bindings.values():
            if binding.selector == call.selector and binding.scope == scope and binding.parameter:
                given[binding.parameter] = binding
    return list(given.values())


def _with_macros(binding: Binding, bindings: dict[str, Binding]) -> list[str]:
    """The binding, and under it those of the macros that it is made of."""
    lines = [str(binding)]
    for leaf in leaves(binding.value):
        if isinstance(leaf, Macro) and leaf.name in bindings:
            lines += [f"  {line}" for line in _with_macros(bindings[leaf.name], bindings)]
    return lines


def _users(call: _Call, bindings: dict[str, Binding]) -> list[Binding]:
    return [
        binding for binding in bindings.values()
        if any(isinstance(leaf, Reference) and leaf.selector == call.selector for leaf in leaves(binding.value))
    ]
