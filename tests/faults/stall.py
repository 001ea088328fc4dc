"""How long training stands still while a state is saved, and the bytes on disk, beside torch.save and safetensors.

    python -m tests.faults.stall --folder=FOLDER [--mib=1024] [--repeats=5]

Ours is what the training loop calls (`training.state.save`): copies, a look for values that are not finite, and a
thread that writes. The others write while they are waited for. They do not ask the disk to keep what it was given
(fsync), which ours does; so each is measured with that too. One after the other, again and again; medians.
"""
import argparse
import os
import pathlib
import shutil
import statistics
import time

import safetensors.torch
import torch

from vqim.checkpoint.manager import CheckpointManager
from vqim.runtime.settings import TorchSettings
from vqim.runtime.torch import TorchRuntime
from vqim.state.leaf import Leaf
from vqim.training.state import TrainState, save

MIB_PER_ARRAY = 16


def size_of(path: pathlib.Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(
        file.stat().st_size for file in path.rglob("*") if file.is_file())


def sync(path: pathlib.Path) -> None:
    """Returns when the disk has what was written to a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


class Ours:
    """A checkpoint."""

    def __init__(self, arrays: dict[str, torch.Tensor]) -> None:
        self._state = TrainState(arrays, 1, 0)
        self._spec = {name: Leaf(tuple(array.shape), axes=("in", "out")) for name, array in arrays.items()}
        self._runtime = TorchRuntime(TorchSettings())

    def __call__(self, path: pathlib.Path, fsync: bool) -> tuple[float, float]:
        manager = CheckpointManager(path)
        begin = time.perf_counter()
        save(self._state, self._spec, manager, self._runtime, data_position={}, config="", metrics={})
        stall = time.perf_counter() - begin
        manager.wait()
        return stall, time.perf_counter() - begin


def waited_for(write):
    """A program that writes a file with arrays and is waited for."""
    def run(path: pathlib.Path, fsync: bool) -> tuple[float, float]:
        begin = time.perf_counter()
        write(path)
        if fsync:
            sync(path)
        seconds = time.perf_counter() - begin
        return seconds, seconds

    return run


def main() -> None:
    """Measures what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    arrays = {f"params/net/weight_{number}": torch.randn(1024, MIB_PER_ARRAY * 256)
              for number in range(arguments.mib // MIB_PER_ARRAY)}
    ours = Ours(arrays)
    torch_save = waited_for(lambda path: torch.save(arrays, path))
    safe = waited_for(lambda path: safetensors.torch.save_file(arrays, path))
    programs = {"vqim": (ours, True), "torch.save": (torch_save, False), "torch.save, fsync": (torch_save, True),
                "safetensors": (safe, False), "safetensors, fsync": (safe, True)}
    seconds = {name: [] for name in programs}
    sizes = {}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for repeat in range(arguments.repeats + 1):
        for name, (program, fsync) in programs.items():
            path = arguments.folder / "saved"
            os.sync()
            measured = program(path, fsync)
            if repeat:  # the first of each fetches code, and the git commit
                seconds[name].append(measured)
            sizes[name] = size_of(path)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    base = statistics.median(stall for stall, _ in seconds["torch.save"])
    for name, measured in seconds.items():
        stall, total = (statistics.median(times) for times in zip(*measured, strict=True))
        print(f"{name:20} stands still {stall:6.2f} s ({stall / base:.2f} of torch.save), written after {total:6.2f} s "
              f"({min(times[1] for times in measured):.2f} to {max(times[1] for times in measured):.2f}), "
              f"{sizes[name]:,} bytes")


if __name__ == "__main__":
    main()
