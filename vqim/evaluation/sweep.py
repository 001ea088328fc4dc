"""Sweeps over settings of a sampler: every combination of some values, each measured as a pass of its own."""
import ast
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from vqim.contracts.runtime import Runtime
from vqim.contracts.task import Task
from vqim.evaluation.samples import Samples

ACCEPTANCE_RATE = "acceptance_rate"

MAX_POINTS = 1000


def parse(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Every combination of values, the last setting fastest.

    Args:
      texts: one setting each, such as 'temperature=0.8,1.0' or 'top_k=100,none'. Words that are neither numbers nor
        'none' stay text.

    Raises:
      ValueError: a text has another form, a setting or a value comes twice, or there are too many combinations.
    """
    axes: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        words = [word.strip() for word in values.split(",")]
        if not name.strip() or not all(words):
            raise ValueError(f"expected NAME=VALUE,VALUE..., such as temperature=0.8,1.0; got {text!r}")
        if name.strip() in axes:
            raise ValueError(f"{name.strip()} is given twice; put all of its values into one")
        axes[name.strip()] = [_value(word) for word in words]
        if len(set(axes[name.strip()])) < len(words):
            raise ValueError(f"a value comes twice in {text!r}")
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())] if axes else []
    if len(points) > MAX_POINTS:
        raise ValueError(f"expected at most {MAX_POINTS} combinations, got {len(points)}")
    return points


def label(settings: Mapping[str, Any]) -> str:
    """Settings in words: 'temperature 0.8, top_k 100'."""
    def word(value: Any) -> str:
        return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name} {word(value)}" for name, value in settings.items())


def swept(
    samples: Samples, task: Task, runtime: Runtime, points: Sequence[Mapping[str, Any]],
) -> list[Samples]:
    """A pass for each combination, checked as far as it can be without drawing.

    Raises:
      ValueError: the sampler has no such setting, or a value does not fit it, the prior or the classifier.
    """
    passes = []
    for settings in points:
        found = samples.with_settings(task, **settings)
        found.check(task, runtime)
        passes.append(found)
    return passes


def _value(word: str) -> Any:
    if word.lower() == "none":
        return None
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word
    return value if isinstance(value, bool | int | float) else word
