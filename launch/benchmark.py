"""Times our programs and others' on the same work, interleaved in one process.

    python -m launch.benchmark sample_ar --size=base
    python -m launch.benchmark all --size=tiny --rounds=2 --json
    python -m launch.benchmark train_prior --dtype=bfloat16           # where the processor has products in it
    python -m launch.benchmark sample_ar --along=batch                # how the time grows: from 1 to 64 images

Cases: sample_ar, sample_masked, train_tokenizer, train_cnn, train_prior, encode, decode, data, optimizer. Look at the
ratios: every round runs each contestant once, so that a busy machine slows all of them equally, and a ratio is the
median of the rounds' ratios. All compute on the CPU and with random weights; --runtime=xla runs the optimizers alone.
Peers from other packages come with vqim[bench]; one that is not installed is shown so.
"""
import dataclasses
import json
import platform
from collections.abc import Sequence

import torch
from absl import app
from absl import flags as absl_flags

from vqim.contracts.runtime import Runtime
from vqim.runtime.settings import TorchSettings, XlaSettings

from . import flags
from .benchmark_cases import CASES, SIZES
from .benchmark_growth import VALUES, growth_as_text, run_growth
from .benchmark_optimizers import optimizer
from .benchmark_timing import as_text, run_case

ALL = {**CASES, "optimizer": optimizer}
GROWING = [name for name in CASES if name != "data"]

SIZE = absl_flags.DEFINE_enum("size", "quickstart", list(SIZES), "How large the networks and the work are.")
ROUNDS = absl_flags.DEFINE_integer("rounds", 7, "How often each contestant runs; the median counts.", lower_bound=1)
THREADS = absl_flags.DEFINE_integer("threads", None, "CPU threads of torch; its choice if not given.", lower_bound=1)
DTYPE = absl_flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "In which all compute but the int8 sampler and optimizers.")
ALONG = absl_flags.DEFINE_enum(
    "along", None, list(VALUES), "Vary this, and print how the time grows with it, instead of one size.")
JSON = absl_flags.DEFINE_bool("json", False, "Print one JSON object instead of text.")


def make_runtime() -> Runtime:
    """The runtime that --runtime names, on all devices."""
    if flags.RUNTIME.value == "xla":
        from vqim.runtime.xla import XlaRuntime  # torch_xla may not be installed
        return XlaRuntime(XlaSettings())
    from vqim.runtime.torch import TorchRuntime
    # Peers compute where torch puts its arrays by default.
    return TorchRuntime(TorchSettings(device="cpu", num_threads=THREADS.value))


def main(argv: Sequence[str]) -> None:
    """Measures a case, or all of them."""
    if len(argv) != 2 or argv[1] not in (*ALL, "all"):
        raise app.UsageError(f"expected one case of {', '.join(ALL)}, or all; got {' '.join(argv[1:]) or 'none'}")
    if flags.RUNTIME.value == "xla" and argv[1] != "optimizer":
        raise app.UsageError(f"--runtime=xla measures optimizer alone, got {argv[1]}")
    if ALONG.value and argv[1] not in GROWING:
        raise app.UsageError(f"--along takes one case of {', '.join(GROWING)}; got {argv[1]}")
    torch.manual_seed(0)  # the peers' weights and draws
    runtime = make_runtime()
    results = []
    for name in ALL if argv[1] == "all" else [argv[1]]:
        make_case, size = ALL[name], dataclasses.replace(SIZES[SIZE.value], dtype=getattr(torch, DTYPE.value))
        if ALONG.value:
            found, text_of = run_growth(make_case, size, ALONG.value, runtime, ROUNDS.value), growth_as_text
        else:
            found, text_of = run_case(make_case(size, runtime), size.dtype, runtime, ROUNDS.value), as_text
        results.append({"case": name, "size": SIZE.value, **found})
        if not JSON.value:
            print(text_of(results[-1]), flush=True)
    machine = {**runtime.describe(), "processor": platform.processor() or platform.machine(),
               "rounds": ROUNDS.value, "dtype": DTYPE.value}
    print(json.dumps({"machine": machine, "cases": results}, indent=2) if JSON.value else machine)


if __name__ == "__main__":
    app.run(main)
