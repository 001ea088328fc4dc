"""Finds the lines in gin files that made a component's constructor fail."""
import inspect
import re
import sysconfig
import traceback
from pathlib import Path
from types import CodeType
from typing import NamedTuple

from gin import config as gin_config
from gin import utils as gin_utils

from vqim.registry import config_names
from vqim.registry.config_text import Binding, ConfigError, Macro, Reference, leaves, reach

_PACKAGE = Path(__file__).resolve().parents[1]

# The text that gin 0.5.0 appends to an error's message, once for each component call that the error passes through.
_CALL = re.compile(
    r"\n  In call to configurable '(?P<name>[^']+)' \((?P<wrapped>.*?)\)(?: in scope '(?P<scope>[^']*)')?$"
)
_MISSING = re.compile(r"missing \d+ required .*arguments?: (.*)")


class _Call(NamedTuple):
    selector: str
    scope: str


def explain(error: Exception, root: str, bindings: dict[str, Binding]) -> tuple[Exception, str]:
    """Finds the original error and, if a component's value caused it, says where the value was written.

    Args:
      error: the error from a call of the root.
      root: the complete name of the root.
      bindings: the loaded bindings by name.

    Returns:
      The original error, and a message. The message is empty where the configuration is not the cause: for errors of
      other types, and for errors in the work of a root function after it has checked its arguments.
    """
    cause, calls = _unwrap(error)
    if not calls or isinstance(cause, ConfigError):
        return cause, ""
    is_told = isinstance(cause, ValueError | TypeError | OSError)
    if not is_told and Path(_raising_code(cause).co_filename).is_relative_to(_PACKAGE):
        return cause, ""  # an error of the house's own, whose traceback is wanted
    call = calls[0]
    code = _raising_code(cause)
    missing = _MISSING.search(str(cause)) if code.co_filename == gin_config.__file__ else None
    works = not inspect.isclass(config_names.registered(root)) and code is not config_names.constructor(root).__code__
    if call.selector == root and not missing and works:
        return cause, ""
    reason = str(cause) if is_told else f"{type(cause).__name__}: {cause}, raised at {raised_at(cause)}"
    lines = [f"{call.selector}{f' in scope {call.scope}' * bool(call.scope)}: {reason}"]
    if missing:
        names = [f"{call.selector}.{parameter}" for parameter in re.findall(r"'(\w+)'", missing[1])]
        lines += [f"  {name} has no value: add `{name} = ...` to a gin file" for name in names]
        if any(leaf.selector == call.selector and leaf.called for binding in _users(call, bindings)
               for leaf in leaves(binding.value) if isinstance(leaf, Reference)):
            lines.append(f"  or write @{call.selector} without (), where what takes it gives these values itself")
    given = [] if missing else _given(call, bindings)
    named = [binding for binding in given if re.search(rf"\b{re.escape(binding.parameter)}\b", str(cause))]
    # If two components disagree, their own lines explain it, not those of the component that contains them.
    subject = re.match(r"(?:\w+\.)*(\w+)", str(cause))
    made = [bindings[name] for name in reach(given, bindings)]
    inner = sorted((binding for binding in made if subject and binding.parameter == subject[1]), key=str)
    for binding in inner + named or given:
        lines += [f"  {line}" for line in _with_macros(binding, bindings)]
    if not given:
        lines += [f"  used by {binding}" for binding in _users(call, bindings)]
    return cause, "\n".join(lines)


def raised_at(error: BaseException) -> str:
    """The file and line from which an error came: the last line that is not the standard library's own."""
    library = (sysconfig.get_path("stdlib"), "<frozen")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(library)
              or "site-packages" in frame.filename]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"


def _unwrap(error: Exception) -> tuple[Exception, list[_Call]]:
    """The error without gin's decorated copies, and the calls that it passed through, innermost first."""
    calls: list[_Call] = []
    while getattr(type(error).__str__, "__module__", "") == gin_utils.__name__:
        inner = error.__context__
        assert isinstance(inner, Exception)  # gin raises its copy while it handles the error itself
        added = str(error)[len(str(inner)):]
        match = _CALL.search(added)
        selector = match and config_names.selector_of(match["name"], match["wrapped"])
        if match and selector:
            calls.insert(0, _Call(selector, match["scope"] or ""))
        error = inner
    return error, calls


def _raising_code(error: Exception) -> CodeType:
    """The function in which an error was raised; a function of gin where Python refused the call's arguments."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next:
        trace = trace.tb_next
    return trace.tb_frame.f_code


def _given(call: _Call, bindings: dict[str, Binding]) -> list[Binding]:
    """The bindings in effect in the call: for each parameter, the one with the longest scope."""
    parts = call.scope.split("/") if call.scope else []
    scopes = ["/".join(parts[:length]) for length in range(len(parts) + 1)]
    given: dict[str, Binding] = {}
    for scope in scopes:
        for binding in bindings.values():
            if binding.selector == call.selector and binding.scope == scope and binding.parameter:
                given[binding.parameter] = binding
    return list(given.values())


def _with_macros(binding: Binding, bindings: dict[str, Binding]) -> list[str]:
    """The binding, and after it the bindings of the macros in it."""
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
