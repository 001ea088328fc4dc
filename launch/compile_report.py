"""The report of launch.compile about the programs that it compiled."""
import dataclasses
from pathlib import Path
from typing import Any

from vqim.runtime import tpu_compiler
from vqim.runtime.estimate import Estimate, Work, estimate, kinds, peak_share
from vqim.runtime.hlo import Module

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to compile.

    Attributes:
      name: its name in the report.
      traced: the program as `vqim.runtime.topology.Traced`.
      num_steps: the number of the run's steps that it makes.
      model_flops: FLOPs on all devices together, by `vqim.runtime.meta.step_flops`; None where that counts nothing.
    """

    name: str
    traced: Any
    num_steps: int = 1
    model_flops: int | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """A program that was compiled, or did not fit."""

    program: Program
    compiled: tpu_compiler.Compiled | None = None
    estimate: Estimate | None = None
    error: tpu_compiler.OutOfMemoryError | None = None


class CompileReport:
    """Programs and their costs.

    Args:
      target: the slice.
      runtime: the runtime's description.
      step: 'train', 'evaluate' or 'sample'.
      parameters: the number of parameters in each part of the task.
      batch_size: the number of images in a training step; None for other steps.
      trace_seconds: the time that tracing took.
    """

    def __init__(
        self, target: tpu_compiler.Slice, runtime: dict[str, Any], step: str, parameters: dict[str, int],
        batch_size: int | None, trace_seconds: float,
    ):
        self._target, self._runtime, self._step, self._parameters = target, runtime, step, parameters
        self._batch_size, self._trace_seconds = batch_size, trace_seconds
        self._results: list[Result] = []

    @property
    def fits(self) -> bool:
        """Whether every program fits the chip."""
        limit = self._target.chip.hbm_bytes
        return all(result.compiled and result.compiled.hbm_bytes <= limit for result in self._results)

    def add(self, program: Program, runtime: Any, dump: str | None) -> None:
        """Compiles a program, and writes it to the folder `dump` if this is given."""
        if dump:
            Path(dump).mkdir(parents=True, exist_ok=True)
            stem = Path(dump) / f"{len(self._results)}_{program.name.replace('/', '_').strip('<>')}"
            stem.with_suffix(".stablehlo").write_bytes(program.traced.stablehlo)
        try:
            compiled = program.traced.compile(self._target, runtime.mesh_shape)
        except tpu_compiler.OutOfMemoryError as error:
            self._results.append(Result(program, error=error))
            return
        if dump:
            stem.with_suffix(".hlo.txt").write_text(compiled.hlo)
        target = self._target
        found = estimate(Module(compiled.hlo), target.chip, target.shape, target.coordinates)
        self._results.append(Result(program, compiled, found))

    def as_json(self) -> dict[str, Any]:
        """All numbers. With several training programs, they are means over the run's steps, and the largest memory."""
        chip, limit = self._target.chip, self._target.chip.hbm_bytes / GIB
        seconds, flops = self._mean("step_seconds"), self._mean_flops()
        return {
            "topology": self._target.name, "chips": self._target.num_devices, "mesh": self._runtime["mesh"],
            "matmul_precision": self._runtime["matmul_precision"], "versions": tpu_compiler.versions(),
            "step": self._step, "batch_size": self._batch_size,
            "parameters": self._parameters,
            "hbm_gib": max(_hbm_gib(result) or 0.0 for result in self._results), "hbm_limit_gib": limit,
            "fits": self.fits, "model_flops": flops, "estimated_step_seconds": seconds,
            "estimated_images_per_second": self._batch_size / seconds if self._batch_size and seconds else None,
            "estimated_peak_share":
                peak_share(flops, seconds, chip, self._target.num_devices) if flops and seconds else None,
            "trace_seconds": self._trace_seconds,
            "compile_seconds": sum(result.compiled.seconds for result in self._results if result.compiled),
            "programs": [self._program_json(result) for result in self._results],
        }

    def as_text(self, top: int) -> str:
        """The same as text for people, with the `top` most expensive kinds of work in each program."""
        everything, chip = self.as_json(), self._target.chip
        mesh = " x ".join(f"{axis} {size}" for axis, size in everything["mesh"].items())
        lines = [
            f"{self._target.name}: {self._target.num_devices} chips, mesh {mesh}, "
            f"matmul_precision {everything['matmul_precision']}",
            ", ".join(f"{package} {number}" for package, number in everything["versions"].items()),
            "parameters: " + ", ".join(f"{part} {count:,}" for part, count in self._parameters.items()),
            f"traced in {self._trace_seconds:.1f} s"]
        for result in self._results:
            lines += ["", *self._program_lines(result, top)]
        if len(self._results) > 1 and self._step == "train" and everything["estimated_step_seconds"]:
            lines += ["", f"mean over the run's steps: {self._speed(everything)} (estimate)"]
        lines += ["", f"Estimates take {chip.link_bytes_per_second / 1e9:g} GB/s a link and direction, "
                      f"{chip.hertz / 1e9:g} GHz, {chip.hbm_bytes_per_second / 1e9:g} GB/s of HBM, "
                      f"{chip.peak_flops / 1e12:g} TFLOP/s peak; vqim/runtime/estimate.py has the method."]
        return "\n".join(lines)

    def _mean(self, name: str) -> float | None:
        """The mean over the run's steps; if not training, the sum over programs. None if a program did not fit."""
        if any(result.estimate is None for result in self._results):
            return None
        total = sum(getattr(result.estimate, name) * result.program.num_steps for result in self._results)
        return total / self._num_steps()

    def _mean_flops(self) -> float | None:
        counts = [(result.program.model_flops, result.program.num_steps) for result in self._results]
        if any(flops is None for flops, _ in counts):
            return None
        return sum((flops or 0) * steps for flops, steps in counts) / self._num_steps()

    def _num_steps(self) -> int:
        return sum(result.program.num_steps for result in self._results) if self._step == "train" else 1

    def _program_json(self, result: Result) -> dict[str, Any]:
        program, found, compiled = result.program, result.estimate, result.compiled
        numbers: dict[str, Any] = {
            "name": program.name, "num_steps": program.num_steps, "model_flops": program.model_flops,
            "hbm_gib": _hbm_gib(result)}
        if result.error:
            return numbers | {"error": str(result.error),
                              "largest_buffers": [dataclasses.asdict(buffer) for buffer in result.error.buffers]}
        assert compiled and found
        return numbers | {
            "hbm_bytes": compiled.memory, "compile_seconds": compiled.seconds,
            "compiler_flops_per_chip": compiled.flops, "executed_flops_per_chip": found.flops,
            "estimated_step_seconds": found.step_seconds,
            "estimated_seconds": {
                "cycles": found.seconds_by("compiler"), "kernels": found.seconds_by("kernel"),
                "bytes": found.seconds_by("bytes"),
                "collectives_exposed": sum(one.exposed_seconds for one in found.exchanges)},
            "collectives": [dataclasses.asdict(exchange) for exchange in found.exchanges]}

    def _program_lines(self, result: Result, top: int) -> list[str]:
        program, found, compiled = result.program, result.estimate, result.compiled
        limit = self._target.chip.hbm_bytes / GIB
        share = f", {program.num_steps:,} of {self._num_steps():,} steps" if self._step == "train" else ""
        if result.error:
            memory_limit = f" {limit:g} GiB" if result.error.limit else ""  # no limit given: it is the vector memory
            return [f"program {program.name}{share}: does not fit{memory_limit}. {result.error}",
                    *(f"  {buffer.size:>8s}  {buffer.shape}  {buffer.operation}" for buffer in result.error.buffers)]
        assert compiled and found
        numbers = self._program_json(result)
        memory = {name: value / GIB for name, value in compiled.memory.items()}
        seconds = numbers["estimated_seconds"]
        lines = [
            f"program {program.name}{share}: compiled in {compiled.seconds:.1f} s",
            f"  HBM a chip: {_hbm_gib(result):.2f} of {limit:g} GiB: arguments {memory['arguments']:.2f}, temporaries "
            f"{memory['temporaries']:.2f}, outputs {memory['outputs']:.2f} of which {memory['aliased']:.2f} in the "
            f"arguments' memory, code {memory['code']:.2f}",
            f"  FLOPs a chip: {found.flops:.4g} executed in products and convolutions"
            + (f", {program.model_flops / self._target.num_devices:.4g} by our model" if program.model_flops else "")
            + f"; the compiler's own count, with each loop's body once, is {compiled.flops:.4g}",
            f"  estimate: {self._speed(numbers)}",
            f"    of which {seconds['cycles']:.4g} s by the compiler's cycles, {seconds['kernels']:.4g} in Pallas "
            f"kernels, {seconds['bytes']:.4g} by memory traffic, {seconds['collectives_exposed']:.4g} in collectives "
            "that nothing hides"]
        lines += [f"  {one.kind}: {one.count} of {one.num_bytes / GIB:.4g} GiB, estimate {one.seconds:.4g} s, "
                  f"{one.exposed_seconds:.4g} s not hidden" for one in found.exchanges]
        if top:
            lines.append("  most expensive kinds of work (estimate: ms, share of step, runs, TFLOP, GiB of HBM, "
                         "bound, what)")
            lines += [f"    {self._work_line(work, found.step_seconds)}" for work in kinds(found.work)[:top]]
        return lines

    def _speed(self, numbers: dict[str, Any]) -> str:
        seconds = numbers["estimated_step_seconds"]
        text = f"{seconds:.4g} s a step"
        if self._batch_size:
            text += f", {self._batch_size / seconds:,.0f} images/s"
        if numbers["model_flops"]:
            share = peak_share(numbers["model_flops"], seconds, self._target.chip, self._target.num_devices)
            text += f", {share:.1%} of peak on our model FLOPs"
        return text

    def _work_line(self, work: Work, step_seconds: float) -> str:
        instruction, bound = work.instruction, work.bound(self._target.chip)
        # Operations in the backward pass have an arbitrary source line.
        source = "" if instruction.operation.startswith("backward/") else instruction.source
        return (f"{work.seconds * 1e3:8.3f} {work.seconds / step_seconds:6.1%} {work.count:5d} "
                f"{work.flops / 1e12:8.4g} {work.num_bytes / GIB:8.4g} {bound:8s} {instruction.name} "
                f"{instruction.operation} {source}".rstrip())


def _hbm_gib(result: Result) -> float | None:
    if result.error:
        return result.error.used
    return result.compiled.hbm_bytes / GIB if result.compiled else None
