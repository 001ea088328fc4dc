"""Loads gin files and bindings, checks them before anything is built, and calls the root component.

    config = load(["gin/exp/foo.gin"], ["train.num_steps = 100"], search_paths=[])
    config.call("train")        # inside it, when the components exist: config.refuse_unused()

gin alone reports one error at a time, without file and line for most, and accepts bindings that nothing uses. So this
package reads gin text itself (config_text.py), checks names (config_names.py), values (config_types.py) and macros, and
only then gives the bindings to gin. An error from a component is explained by its bindings (config_failure.py), and a
resumed run compares its configuration with the old one (config_difference.py).

To know before: a binding is `scope/module.Name.parameter = value`; a macro is `name = value`, used as `%name`;
`@Name()` is a reference to a component. gin keeps its configuration in global variables, so the Config from the last
`load` is the current one. Names are registered before loading, by importing this package's tables, or by `import` lines
in the gin files. Read `load` first, then `Config.call`, then `unused` and `text`.
"""
import dataclasses
import importlib
import re
from typing import Any

import gin

from vqim.registry import config_difference, config_failure, config_names, config_types
from vqim.registry.config_text import (
    Binding,
    ConfigError,
    Import,
    Macro,
    Reference,
    expand,
    leaves,
    map_leaves,
    reach,
    read,
)

__all__ = ["Binding", "Config", "ConfigError", "load"]

_REQUIRED = Macro("gin.REQUIRED")


def load(gin_files: list[str], bindings: list[str], search_paths: list[str]) -> "Config":
    """Reads a configuration and makes it the current one; later bindings override earlier ones.

    Bindings to which only a replaced line referred are removed with it. If a file includes another one and then chooses
    another quantizer, the earlier quantizer's bindings, and their macros, are not part of the configuration.

    `NAME = %gin.REQUIRED` asks for a value before or after it, and replaces none: macros may be set before the file
    that uses them is included.

    Args:
      gin_files: paths, absolute, or relative to the working directory, a search path, the checkout or the package.
      bindings: single bindings, applied after the files; strings need their own quotes: `data.path = "/x"`.
      search_paths: folders in which to look for gin files and what they include.

    Raises:
      ConfigError: lists all problems with file and line: unknown names, missing files, wrong syntax, values of the
        wrong type, macros that are required or used but have no value, plugins that cannot be imported.
    """
    gin.clear_config()
    statements = read(gin_files, bindings, search_paths)
    imports = [statement for statement in statements if isinstance(statement, Import)]
    for plugin in imports:
        _import(plugin)
    problems: list[str] = []
    table: dict[str, Binding] = {}
    moot: set[str] = set()
    for statement in statements:
        if isinstance(statement, Binding):
            try:
                binding = config_names.resolve(statement)
            except ConfigError as error:
                problems.append(str(error))
            else:
                if binding.value == _REQUIRED and binding.name in table:  # it asks for what is there
                    continue
                replaced = table.pop(binding.name, None)  # so that the table has the order of the lines in effect
                if replaced:
                    moot |= reach([replaced], table)
                moot.discard(binding.name)
                table[binding.name] = binding
    alive = {name: binding for name, binding in table.items() if name not in moot}
    table = {name: table[name] for name in table if name in alive.keys() | reach(alive.values(), table)}
    config = Config(table, [plugin.module for plugin in imports])
    problems += config._problems()
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    for binding in table.values():
        _bind(binding)
    gin.finalize()
    return config


@dataclasses.dataclass(frozen=True)
class Config:
    """A configuration that `load` has read.

    Attributes:
      bindings: name -> the binding in effect; macros under their own names.
      imports: the plugins' modules in the order of their first mention.
    """

    bindings: dict[str, Binding]
    imports: list[str]

    def call(self, root: str, **arguments: Any) -> Any:
        """Calls the component registered as `root`; gin supplies every argument that is not given here.

        Raises:
          ConfigError: a component rejected its arguments; the message names the bindings and where they were written.
          Exception: any other error from the root, unchanged.
        """
        try:
            return gin.get_configurable(root)(**arguments)
        except Exception as error:
            failure = error
        # Outside the except block, so that gin's own decorated copies of the error are not shown as its context.
        cause, message = config_failure.explain(failure, config_names.complete(root, "call", root), self.bindings)
        if message:
            raise ConfigError(message) from cause
        raise cause

    def unused(self, except_for: tuple[str, ...] = ()) -> list[Binding]:
        """The bindings and macros that nothing has used so far; to be called when all components are built.

        Args:
          except_for: regular expressions for names that need not be used, such as `r"evaluate\\."` in training. The
            bindings to which these refer need not be used either.
        """
        excepted = [
            binding for name, binding in self.bindings.items() if any(re.match(pattern, name) for pattern in except_for)
        ]
        used = {binding.name for binding in excepted} | reach(excepted, self.bindings)
        for (scope, selector), parameters in config_names.used_parameters().items():
            for parameter in parameters:
                used.update(self._effective(scope, selector, parameter))
        return [binding for name, binding in self.bindings.items() if name not in used]

    def refuse_unused(self, except_for: tuple[str, ...] = ()) -> None:
        """Raises a ConfigError that lists the unused bindings, if there are any; see `unused`."""
        unused = self.unused(except_for)
        if unused:
            raise ConfigError(
                "Nothing uses these bindings:\n"
                + "".join(f"  {binding}{self._overrides(binding) or self._similar(binding)}\n" for binding in unused)
                + "Is the name or the scope another one, or is the component not part of this run? "
                "Correct or delete the lines."
            )

    def refuse_other_experiment(self, old_text: str, workdir: str, may_change: tuple[str, ...] = ()) -> None:
        """Raises a ConfigError if a run directory holds another experiment; see `difference` for the arguments."""
        changes = self.difference(old_text, may_change)
        if changes:
            raise ConfigError(
                f"{workdir} holds another experiment:\n" + "".join(f"  {change}\n" for change in changes)
                + "Use another --workdir, or give the values that the run there was started with."
            )

    def difference(self, old_text: str, may_change: tuple[str, ...] = ()) -> list[str]:
        """The differences between another configuration's text and this one, with file and line of new values.

        Args:
          old_text: `text()` of the other configuration.
          may_change: regular expressions for names whose differences do not count.
        """
        return config_difference.difference(
            old_text, self.text(), may_change, {name: binding.source for name, binding in self.bindings.items()}
        )

    def text(self) -> str:
        """The whole configuration as one gin file without includes, which loads to the same; for `config.gin`."""
        lines = [f"import {module}" for module in self.imports]
        group = None
        for binding in sorted(self.bindings.values(), key=_order):
            if _order(binding)[:3] != group:
                group = _order(binding)[:3]
                lines.append("")
            lines.append(_short(binding))
        return "\n".join(lines).strip() + "\n"

    def operative(self) -> str:
        """The arguments of the components built so far, defaults included, as gin text."""
        return gin.operative_config_str()

    def _macros(self) -> dict[str, Any]:
        return {name: binding.value for name, binding in self.bindings.items() if not binding.parameter}

    def _problems(self) -> list[str]:
        """Required values that are missing, undefined macros, values of the wrong type."""
        problems, macros = [], self._macros()
        for binding in self.bindings.values():
            if _REQUIRED in leaves(binding.value):
                problems.append(
                    f"{binding.source}: {binding.name} is required and has no value. Give it one in your gin file, "
                    f"or by --gin_bindings='{binding.name} = ...'."
                )
            problems += [
                f"{binding.source}: {problem}" for problem in config_names.undefined_macros(binding.value, macros)
            ]
            value = expand(binding.value, macros)
            if binding.parameter:
                problems += self._type_problem(binding, value)
            elif any(isinstance(leaf, Macro) and leaf.name in macros for leaf in leaves(value)):
                problems.append(f"{binding.source}: the macro {binding.name} is defined by itself.")
        return problems

    def _type_problem(self, binding: Binding, value: Any) -> list[str]:
        annotation = config_names.parameters(binding.selector).get(binding.parameter)
        built = map_leaves(_as_built, value)
        if annotation is None or config_types.accepts(annotation, built):
            return []
        origin = "".join(f" ({self.bindings[leaf.name]})" for leaf in leaves(binding.value) if isinstance(leaf, Macro))
        return [
            f"{binding.source}: {binding.name} expects {config_types.describe(annotation)}, "
            f"got {value!r} ({type(built).__name__}).{config_types.hint(annotation, built)}{origin}"
        ]

    def _similar(self, binding: Binding) -> str:
        """Which other macros an unused macro may be a misspelling of."""
        others = [other.name for other in self.bindings.values() if not other.parameter and other is not binding]
        return "" if binding.parameter else config_names.did_you_mean(binding.name, others)

    def _overrides(self, binding: Binding) -> str:
        """Says which longer scopes have their own values for the parameter of an unused binding."""
        names = [
            name for name, other in self.bindings.items()
            if binding.parameter and (other.selector, other.parameter) == (binding.selector, binding.parameter)
            and other.scope.startswith(binding.scope) and name != binding.name
        ]
        return f"; used instead: {', '.join(names)}" if names else ""

    def _effective(self, scope: str, selector: str, parameter: str) -> list[str]:
        """The name of the binding that sets a parameter for a call in `scope`: the one with the longest scope."""
        if selector == config_names.MACRO:
            return [scope]
        parts = scope.split("/") if scope else []
        for length in range(len(parts), -1, -1):
            name = Binding("/".join(parts[:length]), selector, parameter, None, "").name
            if name in self.bindings:
                return [name]
        return []


def _import(plugin: Import) -> None:
    try:
        importlib.import_module(plugin.module)
    except Exception as error:
        is_missing = isinstance(error, ModuleNotFoundError) and f"{plugin.module}.".startswith(f"{error.name}.")
        remedy = ("Expected an importable Python module: install it, or add its folder to PYTHONPATH" if is_missing else
                  f"It was raised at {config_failure.raised_at(error)}")
        raise ConfigError(f"{plugin.source}: the import of {plugin.module} failed: {type(error).__name__}: {error}. "
                          f"{remedy}.") from error
    gin.parse_config(f"import {plugin.module}")  # so that gin repeats the import in the operative config


def _bind(binding: Binding) -> None:
    delegate = gin.config.ParserDelegate()

    def to_gin(leaf: Any) -> Any:
        if isinstance(leaf, Reference):
            return delegate.configurable_reference("/".join(filter(None, [leaf.scope, leaf.selector])), leaf.called)
        if isinstance(leaf, Macro):
            return delegate.macro(leaf.name)
        return leaf

    value = map_leaves(to_gin, binding.value)
    if binding.parameter:
        gin.bind_parameter((binding.scope, binding.selector, binding.parameter), value)
    else:
        gin.bind_parameter((binding.name, config_names.MACRO, "value"), value)


def _as_built(leaf: Any) -> Any:
    """What a component will get for a literal or a reference, as far as this is known before the call."""
    if isinstance(leaf, Reference):
        return config_types.UNKNOWN if leaf.called else config_names.registered(leaf.selector)
    return config_types.UNKNOWN if isinstance(leaf, Macro) else leaf


def _short(binding: Binding) -> str:
    return f"{binding.name} = {binding.value!r}"


def _order(binding: Binding) -> tuple[str, str, str, str]:
    """A sort key: first all macros, then component by component."""
    if not binding.parameter:
        return ("", "", "", binding.name)
    return (binding.selector, binding.scope, "parameters", binding.parameter)
