"""Measures a run's newest checkpoint with the evaluators of its configuration, and writes evaluation.json.

    python -m launch.evaluate --workdir=runs/tokenizer
    python -m launch.evaluate --workdir=/shared/tokenizer --out=results
    python -m launch.evaluate --workdir=runs/tokenizer --gin_bindings='train.evaluators = [...]'

--gin_file and --gin_bindings override the run's own configuration.
"""
import json
import os
from pathlib import Path

from absl import flags as absl_flags

from vqim.evaluation.passes import evaluate
from vqim.registry.config import ConfigError
from vqim.training.data_identity import DataChangedError, check_classes
from vqim.training.summaries import Summaries

from . import flags, session
from .rehearsal import rehearse_evaluators

OUT = absl_flags.DEFINE_string("out", None, "Folder for the results; the run's directory unless given.")


def main() -> None:
    """Runs every evaluator once."""
    config, run = session.open_run(needs_data=True)
    config.refuse_unused(except_for=session.RUNTIME_BINDINGS)
    if getattr(run.experiment.task.objective, "num_classes", 0):
        try:
            check_classes(list(run.facts.class_names), list(run.experiment.data.class_names), "the run")
        except DataChangedError as error:
            raise ConfigError(f"train.data: {error}") from error
    out, experiment = Path(os.path.expanduser(OUT.value or session.run_directory())), run.experiment
    rehearse_evaluators(config, experiment, run.runtime)
    out.mkdir(parents=True, exist_ok=True)
    # Results that an earlier call wrote for this step are replaced.
    summaries = Summaries(out / "evaluation", run.step - 1, enabled=run.runtime.process_index == 0)
    numbers: dict[str, float] = {"step": run.step}
    protocols: dict[str, dict[str, str]] = {}
    shown: set[str] = set()
    for evaluator in experiment.evaluators:
        results = evaluate(evaluator.begin(experiment.task, experiment.data, run.arrays, run.runtime))
        if twice := sorted(results.keys() & shown):
            raise ConfigError(f"train.evaluators: two measure {', '.join(twice[:5])}; give one of them a `section`")
        shown |= results.keys()
        summaries.write(run.step, results)
        numbers |= {name: value for name, value in results.items() if isinstance(value, int | float)}
        protocols |= {name: json.loads(value) for name, value in results.items()
                      if isinstance(value, str) and "protocol/" in name}
    summaries.close()
    if run.runtime.process_index == 0:
        (out / "evaluation.json").write_text(json.dumps(numbers | protocols, indent=2) + "\n")
        for name, value in numbers.items():
            print(f"{name}: {value:.6g}")


def run() -> None:
    """Entry point of the console script."""
    flags.run(main)


if __name__ == "__main__":
    run()
