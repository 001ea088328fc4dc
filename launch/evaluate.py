"""Measures a run's newest checkpoint with the evaluators of its configuration, and writes evaluation.json.

    python -m launch.evaluate --workdir=runs/tokenizer
    python -m launch.evaluate --workdir=runs/tokenizer --gin_bindings='train.evaluators = [...]'

--gin_file and --gin_bindings override the run's own configuration.
"""
import json
from pathlib import Path

from vqim.evaluation.passes import evaluate
from vqim.registry.config import ConfigError
from vqim.training.summaries import Summaries

from . import flags, session


def main() -> None:
    """Runs every evaluator once."""
    config, run = session.open_run(needs_data=True)
    config.refuse_unused(except_for=session.RUNTIME_BINDINGS)
    workdir, experiment = session.run_directory(), run.experiment
    # Results that an earlier call wrote for this step are replaced.
    summaries = Summaries(Path(workdir) / "evaluation", run.step - 1, enabled=run.runtime.process_index == 0)
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
        (Path(workdir) / "evaluation.json").write_text(
            json.dumps(numbers | protocols, indent=2) + "\n")
        for name, value in numbers.items():
            print(f"{name}: {value:.6g}")


def run() -> None:
    """Entry point of the console script."""
    flags.run(main)


if __name__ == "__main__":
    run()
