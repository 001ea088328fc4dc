"""Compiles what a gin file would run on a Cloud TPU slice, without TPUs: does it fit, and how fast would it be?

    python -m launch.compile --gin_file=gin/exp/foo.gin --topology=v4:4x4x8
    python -m launch.compile ... --step=sample --top=10 --dump_hlo=/tmp/hlo

The programs are those of launch.train (or evaluate, or sample), compiled by the real TPU compiler. Arrays have shapes
but no values, and images are not read. Speeds are estimates (see vqim/runtime/estimate.py). Exit code 1 means that a
program does not fit.
"""
import collections
import contextlib
import functools
import json
import logging as python_logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags as absl_flags
from absl import logging

from vqim.registry.config import ConfigError
from vqim.runtime import tpu_compiler

from . import compile_report, flags

TOPOLOGY = absl_flags.DEFINE_string(
    "topology", None, "Chips and their shape, such as v4:4x4x8, v5e:4x4, v5p:2x2x1 or v6e:8x8.", required=True)
STEP = absl_flags.DEFINE_enum(
    "step", "train", ["train", "evaluate", "sample"],
    "What is compiled: the training step, the evaluators of the configuration, or a step of launch.sample.")
JSON = absl_flags.DEFINE_bool("json", False, "Print one JSON object to standard output instead of text.")
DUMP_HLO = absl_flags.DEFINE_string("dump_hlo", None, "Folder for each program as traced and as compiled.")
TOP = absl_flags.DEFINE_integer("top", 0, "How many of the most expensive kinds of work to list.", lower_bound=0)
BATCH_SIZE = absl_flags.DEFINE_integer("batch_size", 64, "Images at a time, with --step=sample.", lower_bound=1)


def main() -> None:
    """Traces, compiles and reports."""
    try:
        tpu_compiler.parse_topology(TOPOLOGY.value)
        tpu_compiler.check_installed()
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error
    environment = tpu_compiler.environment({"LIBTPU_INIT_ARGS": libtpu_args(), **os.environ})
    os.environ.clear()
    os.environ.update(environment)  # before torch_xla and jax read it; this process does nothing else
    from vqim.runtime.topology import TopologyRuntime

    from . import session  # noqa: F401  gin knows the components from here on
    python_logging.getLogger("jax").setLevel(python_logging.WARNING)  # it explains compiling without a backend
    config = flags.load_config()
    try:
        target = tpu_compiler.describe_slice(TOPOLOGY.value)
        runtime = TopologyRuntime(config.call("runtime.Xla"), target)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    experiment = config.call("train", needs_data=False)
    config.refuse_unused(except_for=(*session.READING_BINDINGS, r"vqim\.sample\."))
    begin = time.perf_counter()
    trace = {"train": trace_training, "evaluate": trace_evaluators, "sample": trace_sampling}[STEP.value]
    try:
        programs = trace(experiment, runtime)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    report = compile_report.CompileReport(
        target=target, runtime=runtime.describe(), step=STEP.value, parameters=experiment.task.describe(),
        batch_size=experiment.batch_size if STEP.value == "train" else None,
        trace_seconds=time.perf_counter() - begin)
    for program in programs:
        logging.info("Compiling %s for %s", program.name, TOPOLOGY.value)
        report.add(program, runtime, DUMP_HLO.value)
    print(json.dumps(report.as_json(), indent=2) if JSON.value else report.as_text(TOP.value))
    # Exit without libtpu's own shutdown. After a long compilation it can take more than half a minute; then libtpu
    # kills the process, and the exit code is lost.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if report.fits else 1)


def libtpu_args() -> str:
    """The options of the TPU's compiler with which launch/pod starts a run; LIBTPU_INIT_ARGS gives others, or none."""
    return " ".join((Path(__file__).parent / "pod/libtpu_args.txt").read_text().split())


def trace_training(experiment: Any, runtime: Any) -> list[compile_report.Program]:
    """Every program in the run, with the number of its steps."""
    from vqim.runtime.meta import step_flops
    from vqim.training.loop import check_batch_size
    from vqim.training.programs import Programs
    from vqim.training.state import start
    task = experiment.task
    check_batch_size(experiment.batch_size, runtime, task.num_micro_batches)
    spec, programs = task.init_spec(), Programs(task, runtime)
    host_batch = experiment.data.batch_like(experiment.batch_size // runtime.process_count)
    found = []
    names = list(map(task.objective.program, range(experiment.num_steps)))
    for name, count in collections.Counter(names).items():
        state = start(spec, experiment.seed, runtime)
        state.step = names.index(name)
        batch = runtime.put(host_batch)
        programs(name, state, batch)
        flops = step_flops(task, spec, batch, name)
        found.append(compile_report.Program(name, runtime.traced[-1], count, flops))
    return found


def trace_evaluators(experiment: Any, runtime: Any) -> list[compile_report.Program]:
    """The programs that each evaluator runs before it first reads a result."""
    from vqim.evaluation.passes import evaluate
    from vqim.runtime.topology import NothingComputedError
    from vqim.training.state import start
    if not experiment.evaluators:
        raise ConfigError("--step=evaluate needs train.evaluators, got none: bind them in the gin file, or compile "
                          "--step=train")
    for evaluator in experiment.evaluators:
        state = start(experiment.task.init_spec(), experiment.seed, runtime)
        with contextlib.suppress(NothingComputedError):
            evaluate(evaluator.begin(experiment.task, OneBatch(experiment.data), state.arrays, runtime))
    return [compile_report.Program(traced.name, traced) for traced in runtime.traced]


class OneBatch:
    """Replaces data that this machine need not have: one batch of zeros.

    Args:
      data: the data, which say what a batch looks like.
    """

    num_classes, class_names = 0, ()

    def __init__(self, data: Any):
        self._data, self.image_size = data, data.image_size

    def num_examples(self, split: str) -> int:
        """Enough for one batch."""
        return 1

    def evaluation(self, batch_size: int, **where: Any) -> list[dict[str, np.ndarray]]:
        """The batch."""
        return [self._data.batch_like(batch_size)]


def trace_sampling(experiment: Any, runtime: Any) -> list[compile_report.Program]:
    """The programs of launch.sample for a batch: weights made whole, the step that makes one draw, the decoder."""
    from vqim.evaluation.samples import bind_sampler, draw_batches
    from vqim.runtime.topology import NothingComputedError
    from vqim.state import sections
    from vqim.training.state import start
    task, size = experiment.task, BATCH_SIZE.value
    try:
        draw = bind_sampler(task, runtime, size)
    except ValueError as error:
        raise ConfigError(f"--step=sample: {error}") from error
    arrays = start(sections.reading_spec(task.init_spec()), experiment.seed, runtime).arrays
    with contextlib.suppress(NothingComputedError):
        batch = next(draw_batches(draw, task, arrays, runtime, np.zeros(size, np.int32), size, seed=0))
        runtime.fetch([runtime.compile(functools.partial(decode, task, runtime))(arrays, batch["tokens"])])
    return [compile_report.Program(traced.name, traced) for traced in runtime.traced]


def decode(task: Any, runtime: Any, arrays: Any, tokens_BNK: Any) -> Any:
    """The images of tokens, uint8 [B, H, W, C]."""
    import torch

    from vqim.contracts.context import Context
    from vqim.tokenizer.model import float_to_images
    with torch.no_grad():
        return float_to_images(task.objective.images(
            arrays, tokens_BNK, Context(runtime.kernels, evaluation_dtype=task.evaluation_dtype)))


def run() -> None:
    """Entry point of the console script."""
    flags.run(main)


if __name__ == "__main__":
    run()
