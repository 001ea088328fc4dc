"""Reads gin text as plain data: bindings and imports, each with the place where it was written.

This file knows gin's syntax and where files are, but no components: a reference stays a name. It opens files itself,
since gin's own search logs every miss as an error, searches neither the checkout nor the wheel, and needs
`importlib.util`, which it does not import.
"""
import dataclasses
import difflib
import os
import tokenize
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gin import config_parser

_PACKAGE = Path(__file__).resolve().parents[1]


class ConfigError(ValueError):
    """A configuration that cannot be run. The message has file and line, what was expected, and what was found."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/selector` (a component's factory) or, if called, `@scope/selector()` (what the factory makes)."""

    scope: str
    selector: str
    called: bool

    def __repr__(self) -> str:
        return f"@{self.scope}{'/' * bool(self.scope)}{self.selector}{'()' * self.called}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%name`: the value bound by `name = ...`."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


@dataclasses.dataclass(frozen=True)
class Binding:
    """A value for a parameter, or for the macro `selector` where `parameter` is empty.

    Attributes:
      scope: such as `generator` in `generator/optim.AdamW.beta1 = 0.9`; empty where there is none.
      selector: the name of the component.
      parameter: the name of its argument.
      value: literals, References and Macros; its `repr` is gin text.
      source: where it was written, as `file:line` or `--gin_bindings number n: text`.
    """

    scope: str
    selector: str
    parameter: str
    value: Any
    source: str

    @property
    def name(self) -> str:
        """The text to the left of the equals sign."""
        return "/".join(filter(None, [self.scope, self.selector])) + "." * bool(self.parameter) + self.parameter

    def __str__(self) -> str:
        return f"{self.name} = {self.value!r}  ({self.source})"


@dataclasses.dataclass(frozen=True)
class Import:
    """`import package.module`: a plugin that registers components."""

    module: str
    source: str


class _Names(config_parser.ParserDelegate):
    """Keeps references as names."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        scope, _, selector = scoped_configurable_name.rpartition("/")
        return Reference(scope, selector, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


def read(gin_files: list[str], bindings: list[str], search_paths: list[str]) -> list[Binding | Import]:
    """Reads files and what they include, then single bindings, in the order in which they take effect.

    Args:
      gin_files: paths, absolute or as `find_file` finds them.
      bindings: gin text from `--gin_bindings`, one item for each flag.
      search_paths: the user's folders.

    Raises:
      ConfigError: a file is missing, includes itself, or is not gin.
    """
    statements: list[Binding | Import] = []
    for name in gin_files:
        statements += _read_file(find_file(name, search_paths), search_paths, ())
    for number, text in enumerate(bindings, start=1):
        statements += _read_text(text, _from_flag(number, text), search_paths, ())
    return statements


def parse(text: str, name: str) -> list[Binding | Import]:
    """Reads gin text that includes nothing, such as the `config.gin` of a run directory.

    Args:
      text: the gin text.
      name: its name in messages.
    """
    return list(_read_text(text, lambda line: f"{name}:{line}", [], ()))


def find_file(name: str, search_paths: list[str]) -> Path:
    """Finds a gin file: in the working directory, the user's folders, the checkout, or the installed package.

    The package ships the repository's folder `gin` as `vqim/_gin`, so that `gin/exp/foo.gin` is found there too.

    Raises:
      ConfigError: there is no such file; the message names the places and, if there is one, a file with a similar name.
    """
    folders = [Path.cwd(), *map(Path, search_paths), _PACKAGE.parent]
    candidates = [folder / name for folder in folders]
    parts = Path(name).parts
    if parts[:1] == ("gin",):
        candidates.append(_PACKAGE.joinpath("_gin", *parts[1:]))
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    places = list(dict.fromkeys(str(candidate) for candidate in candidates))
    neighbours = [str(path) for candidate in candidates for path in candidate.parent.glob("*.gin")]
    similar = difflib.get_close_matches(str(candidates[0]), neighbours, n=1)
    hint = f" Did you mean {_shown(Path(similar[0]))}?" if similar else ""
    raise ConfigError(
        f"There is no gin file {name!r}.{hint} Looked for\n  " + "\n  ".join(places)
        + "\nOther folders can be given by --gin_search_path."
    )


def _from_flag(number: int, text: str) -> Callable[[int], str]:
    return lambda line: f"--gin_bindings number {number}: {text}"


def _read_file(path: Path, search_paths: list[str], including: tuple[Path, ...]) -> Iterator[Binding | Import]:
    if path in including:
        chain = " includes ".join(_shown(file) for file in (*including, path))
        raise ConfigError(f"A gin file includes itself: {chain}")
    text = path.read_text(encoding="utf-8-sig")  # some editors write a byte-order mark first
    return _read_text(text, lambda line: f"{_shown(path)}:{line}", search_paths, (*including, path))


def _read_text(
    text: str, source: Callable[[int], str], search_paths: list[str], including: tuple[Path, ...],
) -> Iterator[Binding | Import]:
    for statement in _statements(text, source):
        where = source(statement.location.line_num)
        if isinstance(statement, config_parser.BindingStatement):
            yield Binding(statement.scope, statement.selector, statement.arg_name, statement.value, where)
        elif isinstance(statement, config_parser.ImportStatement):
            if statement.module.startswith("__gin__."):
                raise ConfigError(
                    f"{where}: vqim does not use gin's dynamic registration; give the component a name by "
                    "gin.register(X, module='...') in a Python module, and import that module here"
                )
            yield Import(statement.module, where)
        elif isinstance(statement, config_parser.IncludeStatement):
            try:
                path = find_file(statement.filename, search_paths)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
            yield from _read_file(path, search_paths, including)


def _statements(text: str, source: Callable[[int], str]) -> Iterator[Any]:
    """The statements from gin's own parser; all its kinds of syntax error become one."""
    try:
        parser = config_parser.ConfigParser(text, _Names())
        while (statement := parser.parse_statement()) is not None:
            yield statement
        return
    except SyntaxError as error:
        line, problem, shown = error.lineno or 1, error.msg, (error.text or "").strip()
    except tokenize.TokenError as error:
        problem, (line, _) = error.args
        shown = ""
    except StopIteration:  # gin's parser ran past the last token
        line, problem, shown = text.count("\n") + 1, "Unexpected end.", ""
    raise ConfigError(
        f"{source(line)}: not gin syntax: {problem.strip().splitlines()[-1].strip()}"
        + f"\n    {shown}" * bool(shown)
        + "\nExpected `name.parameter = value`, `MACRO = value`, `name:` and below it an indented block of "
        "`parameter = value`, `include 'file.gin'` or `import module`. "
        "A value is a Python literal (text in quotes), @name, @name() or %MACRO."
    )


def _shown(path: Path) -> str:
    """The shortest path that can be opened from the working directory."""
    if path.is_relative_to(Path.cwd()):
        return os.fspath(path.relative_to(Path.cwd()))
    return os.fspath(path)


def leaves(value: Any) -> Iterator[Any]:
    """Everything in nested lists, tuples and dicts that is not itself one of these."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(key)
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def reach(start: Iterable[Binding], table: dict[str, Binding]) -> set[str]:
    """The names of all bindings to which some bindings refer, directly or indirectly.

    A component that is called without its own scope is called in its caller's scope. Of a parameter's bindings the one
    with the longest scope counts.
    """
    seen: set[tuple[str, str]] = set()
    waiting = [(binding, binding.scope) for binding in start]
    while waiting:
        binding, scope = waiting.pop()
        for leaf in leaves(binding.value):
            inner = scope
            if isinstance(leaf, Reference):
                inner = leaf.scope or scope
                found = [other for other in table.values() if other.parameter and other.selector == leaf.selector
                         and f"{inner}/".startswith(f"{other.scope}/" if other.scope else "")]
                longest = {other.parameter: other.name for other in sorted(found, key=lambda other: len(other.scope))}
                names = list(longest.values())
            else:
                names = [leaf.name] if isinstance(leaf, Macro) and leaf.name in table else []
            new = [name for name in names if (name, inner) not in seen]
            waiting += [(table[name], inner) for name in new]
            seen.update((name, inner) for name in new)
    return {name for name, _ in seen}


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """`value` with `function` applied to each of its leaves."""
    if isinstance(value, dict):
        return {map_leaves(function, key): map_leaves(function, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_leaves(function, item) for item in value)
    return function(value)


def expand(value: Any, macros: dict[str, Any]) -> Any:
    """`value` with macros replaced by their values; macros that are not in `macros` stay."""
    def replaced(leaf: Any) -> Any:
        if isinstance(leaf, Macro) and leaf.name in macros:
            others = {name: bound for name, bound in macros.items() if name != leaf.name}
            return expand(macros[leaf.name], others)
        return leaf

    return map_leaves(replaced, value)
