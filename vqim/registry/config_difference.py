"""Compares two configurations by their values, ignoring order, comments and macros."""
import re

from vqim.registry.config_text import Binding, Macro, expand, leaves, parse, reach


class _NotSet:
    def __repr__(self) -> str:
        return "not set"


_NOT_SET = _NotSet()


def difference(
    old_text: str, new_text: str, may_change: tuple[str, ...] = (), sources: dict[str, str] | None = None,
) -> list[str]:
    """Lists the values that changed; empty if both texts are the same experiment.

    Macros are replaced by their values first, so that a line names the parameter that changed. Names are compared as
    they are written, so both texts should come from `Config.text`, which writes complete names.

    Args:
      old_text: gin text without includes.
      new_text: gin text without includes.
      may_change: regular expressions that match, from the start, names without their scope, whose differences do not
        count; nor do differences of what only these refer to, such as an evaluator's network.
      sources: where each binding of the new text was written, by name.

    Returns:
      Lines such as `train.batch_size was 64, now 128 (gin/exp/foo.gin:7)`, sorted by name.
    """
    old, new = _bindings(old_text, "the old configuration"), _bindings(new_text, "the new configuration")
    old_macros, new_macros = _macros(old), _macros(new)
    old_free, new_free = _free(old, may_change), _free(new, may_change)
    lines = []
    for name in sorted(old.keys() | new.keys()):
        is_free = (name not in old or name in old_free) and (name not in new or name in new_free)
        if name in old_macros or name in new_macros or is_free:
            continue
        before = expand(old[name].value, old_macros) if name in old else _NOT_SET
        after = expand(new[name].value, new_macros) if name in new else _NOT_SET
        if before != after:
            lines.append(f"{name} was {before!r}, now {after!r}{_places(name, new, sources or {})}")
    return lines


def _bindings(text: str, name: str) -> dict[str, Binding]:
    return {statement.name: statement for statement in parse(text, name) if isinstance(statement, Binding)}


def _macros(bindings: dict[str, Binding]) -> dict[str, object]:
    return {name: binding.value for name, binding in bindings.items() if not binding.parameter}


def _free(bindings: dict[str, Binding], may_change: tuple[str, ...]) -> set[str]:
    """The names that may change, and those that nothing else reaches."""
    named = {name for name, binding in bindings.items()
             if any(re.match(pattern, name.removeprefix(f"{binding.scope}/")) for pattern in may_change)}
    reached = reach([bindings[name] for name in named], bindings)
    others = [binding for name, binding in bindings.items() if name not in named | reached]
    return named | (reached - reach(others, bindings))


def _places(name: str, bindings: dict[str, Binding], sources: dict[str, str]) -> str:
    """Where the new value comes from: the binding, and the macros in it."""
    if name not in bindings:
        return ""
    places, waiting = [], [name]
    while waiting:
        current = waiting.pop(0)
        if current in bindings and current not in places:
            places.append(current)
            waiting += [leaf.name for leaf in leaves(bindings[current].value) if isinstance(leaf, Macro)]
    written = [sources[place] for place in places if place in sources]
    return f" ({', '.join(written)})" if written else ""
