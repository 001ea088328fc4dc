"""Measures vqim on one GPU: does it run, how fast, and does anything in a step wait for the host?

    bash tests/gpu/run.sh                                # on the GPU's machine
    python -m tests.gpu.measure --dry_run --out=results  # the same at tiny sizes, on the CPU

Writes gpu.json and gpu.txt. A part that fails is recorded with its error; one that time does not suffice for is not
begun. Weights are random, frozen ones too, and images and tokens are noise: no speed depends on them.

    B images in a batch, N positions, K codes a position
"""
import argparse
import dataclasses
import functools
import json
import statistics
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vqim.registry.components  # noqa: F401  gin knows the components
from launch import benchmark_cases, benchmark_packages
from launch.benchmark_peers import PlainPrior
from vqim.contracts.context import Context
from vqim.nn.module import apply
from vqim.prior.masked_sampler import MaskedSampler
from vqim.prior.sampler import StepwiseSampler
from vqim.registry.config import load
from vqim.runtime.meta import step_flops
from vqim.runtime.settings import TorchSettings
from vqim.runtime.torch import TorchRuntime
from vqim.state import sections
from vqim.state.init import Constant
from vqim.state.leaf import Spec, State, select
from vqim.training.state import start

FLAGS = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
FLAGS.add_argument("--dry_run", action="store_true", help="tiny sizes, on the CPU")
FLAGS.add_argument("--out", type=Path, default=Path("."), help="the folder for gpu.json and gpu.txt")
FLAGS.add_argument("--seconds", type=float, default=270, help="no part begins later than this")

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 products a second, by NVIDIA's data sheets (SXM)."""

PRIOR = ["gin/exp/vim_base_imagenet.gin"]
SMALL_PRIOR = ["gin/debug/shrink_vit.gin", "gin/debug/shrink_stage2.gin"]
TOKENIZER = ["gin/exp/vit_vqgan_bb_imagenet.gin"]
SMALL_TOKENIZER = ["gin/debug/shrink_vit.gin", "gin/debug/shrink_stage1.gin", "gin/debug/shrink_stylegan2.gin"]
BFLOAT16 = ["training.GradientTask.dtype = 'bfloat16'"]
# The trunk's values are random too, so that any file stands for its weights.
LPIPS = ["tokenizer.Perceptual.lpips = @frozen.Lpips()", "frozen.Lpips.trunk = @frozen.VGG16()",
         f"frozen.VGG16.weights_path = {__file__!r}"]


@dataclasses.dataclass
class Bench:
    """Where and how large.

    Attributes:
      runtime: the runtime that is measured.
      dry_run: whether sizes are tiny.
      peak: products a second that the device's data sheet promises; None where it is not known.
    """

    runtime: TorchRuntime
    dry_run: bool
    peak: float | None

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU to wait for."""
        return self.runtime.device.type == "cuda"

    def experiment(self, files: list[str], small: list[str], bindings: list[str]) -> Any:
        """An experiment of the papers, or its small twin."""
        config = load([*files, *(small if self.dry_run else [])], [*bindings, "train.evaluators = []"], [])
        return config.call("train", needs_data=False)

    def wait(self) -> None:
        """Returns when the device has done all that it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], rounds: int) -> float:
        """The median of some calls, after two that do not count."""
        times = []
        for _ in range(2 if self.dry_run else rounds + 2):
            begin = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - begin)
        return statistics.median(times[1 if self.dry_run else 2:])

    def arrays(self, spec: Spec) -> State:
        """Arrays of a spec: its constants, and small random values for all else."""
        generator = torch.Generator(self.runtime.device).manual_seed(0)
        found = {}
        for name, leaf in spec.items():
            array = torch.zeros(leaf.shape, dtype=leaf.dtype, device=self.runtime.device)
            if isinstance(leaf.init, Constant):
                array.fill_(leaf.init.value)
            elif leaf.dtype.is_floating_point:
                array.normal_(0, 0.02, generator=generator)
            found[name] = array
        return found


def ceilings(bench: Bench) -> dict[str, float]:
    """What a product of two matrices in bfloat16, and a copy, reach here."""
    size, count = (256, 2**20) if bench.dry_run else (8192, 2**30)
    a = torch.randn(size, size, device=bench.runtime.device).bfloat16()
    x = torch.zeros(count, device=bench.runtime.device)
    y = torch.zeros_like(x)
    return {"product_flops_per_second": 2 * size**3 / bench.seconds(lambda: a @ a, 10),
            "copy_bytes_per_second": 8 * count / bench.seconds(lambda: y.copy_(x), 10)}


def same_as_cpu(bench: Bench) -> dict[str, Any]:
    """Losses of a few float32 steps here and on the CPU, and which share of sampled tokens is the same."""
    found: dict[str, Any] = {}
    torch.backends.cudnn.allow_tf32 = False  # torch's default for convolutions
    for name in ("tokenizer_tiny", "classifier_tiny"):
        losses = []
        for runtime in (bench.runtime, TorchRuntime(TorchSettings(device="cpu"))):
            experiment = load([f"gin/debug/{name}.gin"], ["train.evaluators = []"], []).call("train")
            task = experiment.task
            arrays = start(task.init_spec(), 0, runtime).arrays
            loader, of_run = experiment.data.training(32, 0), []
            for step in range(5):
                scalars = runtime.scalars({**task.host_scalars(step), "step": step, "seed": 0})
                shown = task.train_step(arrays, runtime.put(next(loader)), scalars, runtime.kernels)
                of_run.append(shown["loss"].item())
            loader.close()
            losses.append(np.array(of_run))
        found[f"{name}_largest_relative_gap"] = float(np.abs(losses[0] / losses[1] - 1).max())
    torch.backends.cudnn.allow_tf32 = True
    size = benchmark_cases.SIZES["tiny"]
    for name, sampler, make in (("stepwise", StepwiseSampler(), benchmark_cases.AutoregressivePrior),
                                ("masked", MaskedSampler(4), benchmark_cases.MaskedPrior)):
        prior = make(size.grid, 0, size.width, size.num_layers, size.num_heads, 4 * size.width, 0.0)
        drawn = []
        for runtime in (bench.runtime, TorchRuntime(TorchSettings(device="cpu"))):
            arrays = {array: value.to(runtime.device) for array, value in _values(prior).items()}
            draw = sampler.bind(prior, runtime, 64, torch.float32)
            drawn.append(draw(arrays, np.full(64, -1, np.int32), np.arange(64), 0).cpu())
        found[f"{name}_share_of_equal_tokens"] = (drawn[0] == drawn[1]).float().mean().item()
    return found


def _values(prior: Any) -> State:
    generator = torch.Generator().manual_seed(0)
    return {name: 0.2 * torch.randn(leaf.shape, generator=generator)
            for name, leaf in benchmark_cases.arrays_spec(prior).items()}


def train_prior(bench: Bench) -> dict[str, Any]:
    """A step of VIM-Base on 1,024 tokens an image, in bfloat16."""
    experiment = bench.experiment(PRIOR, SMALL_PRIOR, ["TOKENIZER_RUN = 'none'", *BFLOAT16])
    grid = experiment.task.objective.tokenizer.grid

    def batch(size: int) -> dict[str, np.ndarray]:
        shape = (size, grid.num_positions, grid.num_channels)
        tokens = np.random.default_rng(0).integers(0, grid.levels[0].vocabulary, shape).astype(np.int32)
        return {"tokens": tokens, "labels": np.zeros(size, np.int32), "valid": np.ones(size, bool)}

    return train(bench, experiment.task, batch, 2 if bench.dry_run else 16, {"train": 1.0})


def train_tokenizer(bench: Bench) -> dict[str, Any]:
    """A step of ViT-VQGAN Base-Base with StyleGAN2's discriminator and LPIPS, in bfloat16; R1 in every 16th step."""
    # A CPU without bfloat16 products would take minutes for LPIPS.
    experiment = bench.experiment(TOKENIZER, SMALL_TOKENIZER, LPIPS if bench.dry_run else [*BFLOAT16, *LPIPS])
    task, size = experiment.task, experiment.data.image_size
    names = list(map(task.objective.program, range(160)))

    def batch(count: int) -> dict[str, np.ndarray]:
        images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
        return {"images": images, "labels": np.zeros(count, np.int32), "valid": np.ones(count, bool)}

    shares = {name: names.count(name) / len(names) for name in dict.fromkeys(names)}
    return train(bench, task, batch, 4 if bench.dry_run else 32, shares)


def train(
    bench: Bench, task: Any, batch_of: Callable[[int], dict[str, np.ndarray]], batch_size: int,
    shares: dict[str, float],
) -> dict[str, Any]:
    """Times each program of a task, and says what share of the peak its products are, and what waits for the host."""
    spec = task.init_spec()
    arrays = bench.arrays(spec)
    while True:
        try:
            return {"batch_size": batch_size, **_train(bench, task, spec, arrays, batch_of(batch_size), shares)}
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
        batch_size //= 2
        torch.cuda.empty_cache()


def _train(
    bench: Bench, task: Any, spec: Spec, arrays: State, host_batch: dict[str, np.ndarray], shares: dict[str, float],
) -> dict[str, Any]:
    runtime, found = bench.runtime, dict[str, Any]()
    batch = runtime.put(host_batch)
    mean_seconds = mean_flops = 0.0
    for program, share in shares.items():
        number = 0

        def step(program: str = program) -> Tensor:
            nonlocal number
            number += 1
            scalars = runtime.scalars({**task.host_scalars(number), "step": number, "seed": 0})
            shown = task.train_step(arrays, batch, scalars, runtime.kernels, program)
            return shown["loss"]

        seconds = bench.seconds(step, 8)
        flops = step_flops(task, spec, batch, program)
        mean_seconds, mean_flops = mean_seconds + share * seconds, mean_flops + share * flops
        found[program] = {"seconds": seconds, "flops": flops, "share_of_steps": share, **waits(bench, step)}
    size = len(next(iter(host_batch.values())))
    found |= {"seconds": mean_seconds, "images_per_second": size / mean_seconds,
              "flops_per_second": mean_flops / mean_seconds}
    if bench.peak:
        found["model_flops_utilisation"] = mean_flops / mean_seconds / bench.peak
    if bench.on_gpu:
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def waits(bench: Bench, step: Callable[[], Tensor]) -> dict[str, Any]:
    """What a step reads back or waits for, how busy the GPU is, and its longest kernels."""
    found: dict[str, Any] = {}
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if bench.on_gpu:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
        torch.cuda.set_sync_debug_mode("default")
        found["synchronizing_operations"] = [str(warning.message)[:200] for warning in caught]
        bench.wait()
    begin = time.perf_counter()
    with torch.profiler.profile(activities=kinds) as profile:
        step()
        launched = time.perf_counter() - begin
        bench.wait()
        seconds = time.perf_counter() - begin
    events = profile.key_averages()
    found |= {
        "profiled_seconds": seconds, "seconds_until_all_was_launched": launched,
        "copies_to_the_host": sum(event.count for event in events if "DtoH" in event.key),
        "stream_waits": sum(event.count for event in events if event.key == "cudaStreamSynchronize"),
        "reads_of_a_scalar": sum(event.count for event in events if event.key == "aten::_local_scalar_dense")}
    if bench.on_gpu:
        kernels = [event for event in events if event.self_device_time_total and not event.self_cpu_time_total]
        found["gpu_busy"] = sum(event.self_device_time_total for event in kernels) / 1e6 / seconds
    else:
        kernels = list(events)
    own_time = "self_device_time_total" if bench.on_gpu else "self_cpu_time_total"
    kernels = sorted(kernels, key=lambda event: -getattr(event, own_time))
    found["longest"] = [{"name": event.key[:100], "calls": event.count, "ms": getattr(event, own_time) / 1e3}
                        for event in kernels[:15]]
    return found


def encode_and_decode(bench: Bench) -> dict[str, Any]:
    """Images a second of ViT-VQGAN Base-Base, in float32 and bfloat16."""
    experiment = bench.experiment(TOKENIZER, SMALL_TOKENIZER, LPIPS)
    model, batch_size = experiment.task.objective.tokenizer, 2 if bench.dry_run else 64
    arrays = select(bench.arrays(experiment.task.init_spec()), sections.params("tokenizer"))
    images_BCHW = torch.rand(batch_size, 3, model.image_size, model.image_size, device=bench.runtime.device)
    found = {}
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            context = Context(bench.runtime.kernels, dtype)
            tokens_BNK = apply(model.tokens, arrays, images_BCHW, context)
            for name, method, x in (("encode", model.tokens, images_BCHW), ("decode", model.images, tokens_BNK)):
                call = functools.partial(apply, method, arrays, x, context)
                seconds = bench.seconds(call, 5)
                found[f"{name}_{str(dtype).removeprefix('torch.')}_images_per_second"] = batch_size / seconds
    return found


def sample(bench: Bench) -> dict[str, Any]:
    """Tokens a second of a prior of VIM-Base's size on 1,024 tokens in bfloat16, beside others' samplers."""
    size = benchmark_cases.SIZES["tiny"] if bench.dry_run else benchmark_cases.Size(256, 8, 1536, 24, 16, 8192, 16)
    arguments = (size.grid, 0, size.width, size.num_layers, size.num_heads, 4 * size.width, 0.0)
    labels_B, numbers_B = np.full(size.batch_size, -1, np.int32), np.arange(size.batch_size)
    calls: dict[str, Callable[[], Any]] = {}
    for name, sampler, make in (("vqim", StepwiseSampler(), benchmark_cases.AutoregressivePrior),
                                ("vqim, masked in 8 steps", MaskedSampler(8), benchmark_cases.MaskedPrior)):
        prior = make(*arguments)
        arrays = bench.arrays(benchmark_cases.arrays_spec(prior))
        draw = sampler.bind(prior, bench.runtime, size.batch_size, torch.bfloat16)
        calls[name] = lambda draw=draw, arrays=arrays: draw(arrays, labels_B, numbers_B, 0)
    plain = PlainPrior(*size.plain, causal=True).to(bench.runtime.device, torch.bfloat16)
    calls["plain, static cache"] = lambda: plain.sample(size.batch_size)
    if not benchmark_packages.why_missing("transformers GPT-2"):
        model = benchmark_packages.gpt2(*size.plain).to(bench.runtime.device, torch.bfloat16).eval()
        calls["transformers GPT-2, static cache"] = lambda: benchmark_packages.gpt2_draw(
            model, size.batch_size, size.num_tokens, size.vocabulary, "static")
    torch.set_default_dtype(torch.bfloat16)  # the plain program's cache
    found: dict[str, Any] = {"batch_size": size.batch_size, "tokens": size.num_tokens}
    try:
        with torch.device(bench.runtime.device):
            for name, call in calls.items():
                call()
                bench.wait()
                begin = time.perf_counter()
                call()
                bench.wait()
                found[name] = size.batch_size * size.num_tokens / (time.perf_counter() - begin)
    finally:
        torch.set_default_dtype(torch.float32)
    return found


PARTS: list[Callable[[Bench], dict[str, Any]]] = [
    ceilings, same_as_cpu, train_prior, train_tokenizer, encode_and_decode, sample]


def main() -> None:
    """Runs all parts, and writes what they found after each."""
    arguments = FLAGS.parse_args()
    begin = time.perf_counter()
    device = "cpu" if arguments.dry_run else "cuda"
    runtime = TorchRuntime(TorchSettings(device=device))
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, a dry run at tiny sizes"
    peak = next((value for word, value in PEAKS.items() if word in name), None)
    bench = Bench(runtime, arguments.dry_run, peak)
    results: dict[str, Any] = {"device": name, "peak_flops_per_second": peak, **runtime.describe()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        started = time.perf_counter()
        try:
            if started - begin > arguments.seconds:
                raise TimeoutError(f"not begun: {arguments.seconds:.0f} s were over")
            found = part(bench)
        except Exception as error:  # the other parts are worth having
            found = {"error": f"{type(error).__name__}: {error}"[:1000], "traceback": traceback.format_exc()[-3000:]}
        if device == "cuda":
            torch.cuda.empty_cache()
        results[part.__name__] = {**found, "part_seconds": time.perf_counter() - started}
        (arguments.out / "gpu.json").write_text(json.dumps(results, indent=2) + "\n")
        (arguments.out / "gpu.txt").write_text(as_text(results))
        print(f"{part.__name__}: {time.perf_counter() - started:.1f} s {found.get('error', '')}", flush=True)
    print(as_text(results))


def as_text(results: dict[str, Any], indent: str = "") -> str:
    """Numbers, a line for each."""
    lines = []
    for name, value in results.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{name}:\n{as_text(value, indent + '  ')}".rstrip("\n"))
        elif isinstance(value, list):
            lines += [f"{indent}{name}:", *(f"{indent}  {entry}" for entry in value)]
        else:
            lines.append(f"{indent}{name}: {f'{value:.4g}' if isinstance(value, float) else value}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
