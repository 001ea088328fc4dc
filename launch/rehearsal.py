"""Tries out a run without data and without arithmetic, so that what cannot work is refused before any work.

Every program of a step, and every evaluator with all its metrics, is run once on arrays that have shapes and no values.
"""
import inspect
from typing import Any

import numpy as np

from vqim.checkpoint.policy import KeepBest
from vqim.contracts.runtime import Runtime
from vqim.evaluation.passes import Pass
from vqim.evaluation.rehearsal import rehearse as rehearse_pass
from vqim.registry.config import Config, ConfigError
from vqim.runtime.arrays import to_tensor
from vqim.runtime.meta import MetaKernels, step_metrics
from vqim.training.experiment import Experiment


def rehearse(config: Config, experiment: Experiment, runtime: Runtime) -> None:
    """Rehearses training steps and evaluators.

    Raises:
      ConfigError: a step or an evaluator fails, two evaluators measure the same, or `KeepBest` keeps the best of what
        nothing measures; the message has the lines of the components that are meant.
    """
    of_steps = _rehearse_steps(config, experiment)
    of_evaluators = rehearse_evaluators(config, experiment, runtime)
    numbers = None if of_evaluators is None else of_steps | set(of_evaluators)
    best = [policy for policy in experiment.keep if isinstance(policy, KeepBest)]
    for policy in best:
        if numbers is not None and policy.metric not in numbers:
            raise ConfigError(f"checkpoint.KeepBest: metric must be one of what is measured, "
                              f"{', '.join(sorted(numbers)) or 'nothing'}; got {policy.metric!r}"
                              + lines(config, policy, "metric"))


def rehearse_evaluators(config: Config, experiment: Experiment, runtime: Runtime) -> list[str] | None:
    """Rehearses the evaluators alone.

    Returns:
      The names of the numbers that they measure; None where not all are known.

    Raises:
      ConfigError: an evaluator fails, or two measure the same.
    """
    shown: dict[str, str] = {}
    numbers: list[str] = []
    all_known = True
    for evaluator in experiment.evaluators:
        words = f"train.evaluators: {type(evaluator).__name__}"
        if not isinstance(evaluator, Pass):
            all_known = False
            continue
        if evaluator.batch_size % runtime.num_batch_shards:
            raise ConfigError(f"{words}: batch_size must be a multiple of {runtime.num_batch_shards}, the devices that "
                              f"share a batch; got {evaluator.batch_size}" + lines(config, evaluator, "batch_size"))
        try:
            names = rehearse_pass(evaluator, experiment.task, experiment.data, MetaKernels())
        except (ValueError, RuntimeError, AssertionError, KeyError, IndexError, TypeError, AttributeError) as error:
            parts = [evaluator, *getattr(evaluator, "metrics", ())]
            raise ConfigError(f"{words} cannot measure what this run makes: {_reason(error)}"
                              + "".join(lines(config, part) for part in parts)) from error
        if names is None:
            all_known = False
            continue
        twice = sorted(names.keys() & shown.keys())
        if twice:
            raise ConfigError(f"train.evaluators: two measure {', '.join(twice[:5])}, {shown[twice[0]]} and "
                              f"{type(evaluator).__name__}; give one of them a `section`" + lines(config, evaluator))
        shown |= dict.fromkeys(names, type(evaluator).__name__)
        numbers += [name for name, is_number in names.items() if is_number]
    return numbers if all_known else None


def _rehearse_steps(config: Config, experiment: Experiment) -> set[str]:
    """Runs each program of a training step once; returns the names of what they measure."""
    found: set[str] = set()
    spec = experiment.task.init_spec()
    batch = {name: to_tensor(np.ascontiguousarray(array[:1])).expand(experiment.batch_size, *array.shape[1:])
             for name, array in experiment.data.batch_like(experiment.batch_size).items()}
    for program in sorted(set(map(experiment.task.objective.program, range(experiment.num_steps)))):
        try:
            found |= set(step_metrics(experiment.task, spec, batch, program))
        except (ValueError, RuntimeError, AssertionError, KeyError, IndexError, TypeError, AttributeError) as error:
            objective = experiment.task.objective
            raise ConfigError(f"train.task: a step (program {program}) of {experiment.batch_size} examples fails: "
                              f"{_reason(error)}" + lines(config, objective)
                              + lines(config, getattr(objective, "adversary", None))) from error
    return found


def lines(config: Config, component: Any, parameter: str | None = None) -> str:
    """The bindings of a component's class, or of one parameter of it, each in a line of its own."""
    names = {kind.__name__ for kind in inspect.getmro(type(component))}
    found = [str(binding) for binding in config.bindings.values()
             if binding.parameter and binding.selector.split(".")[-1] in names
             and parameter in (None, binding.parameter)]
    return "".join(f"\n  {line}" for line in found)


def _reason(error: Exception) -> str:
    """An error in words."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
