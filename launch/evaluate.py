"""Measures a run's newest checkpoint with the evaluators of its configuration, and writes evaluation.json.

    python -m launch.evaluate --workdir=runs/tokenizer
    python -m launch.evaluate --workdir=runs/tokenizer --gin_bindings='train.evaluators = [...]'

What --gin_file and --gin_bindings set wins over the run's own configuration.
"""
import json
from pathlib import Path

from vqim.training.state import restore_arrays
from vqim.training.summaries import Summaries

from . import flags, session


def main() -> None:
    """Runs every evaluator once."""
    workdir = session.run_directory()
    config = session.load_run_config(workdir)
    runtime = session.make_runtime(config, flags.RUNTIME.value)
    experiment = config.call("train")
    config.refuse_unused(except_for=session.RUNTIME_BINDINGS)
    checkpoint = session.open_checkpoint(workdir)
    arrays = restore_arrays(experiment.task.init_spec(), experiment.seed, runtime, checkpoint)
    # What an earlier call wrote for this step is written anew.
    summaries = Summaries(Path(workdir) / "evaluation", checkpoint.step - 1, enabled=runtime.process_index == 0)
    numbers: dict[str, float] = {"step": checkpoint.step}
    for evaluator in experiment.evaluators:
        results = evaluator(experiment.task, experiment.data, arrays, runtime)
        summaries.write(checkpoint.step, results)
        numbers |= {name: value for name, value in results.items() if isinstance(value, int | float)}
    summaries.close()
    if runtime.process_index == 0:
        (Path(workdir) / "evaluation.json").write_text(json.dumps(numbers, indent=2) + "\n")
        for name, value in numbers.items():
            print(f"{name}: {value:.6g}")


def run() -> None:
    """Entry point of the console script."""
    flags.run(main)


if __name__ == "__main__":
    run()
