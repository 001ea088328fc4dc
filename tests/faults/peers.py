"""What vqim's checkpoints, orbax's and torch.distributed.checkpoint's do about the same faults.

    pip install orbax-checkpoint
    python -m tests.faults.peers [--rows=kill,data,index,missing,cut,writers,shape,full] [--trials=40] [--seed=0]

Each of the three saves eight arrays, of which every step has its own, as step 1, step 2 and so on. Then something
happens, and a process that knows nothing of it reads the newest step, as each library finds it: orbax's and ours by
their managers; torch.distributed.checkpoint has none, and its newest step is the folder with the highest number that
has a `.metadata`, the rule of torchtitan. What is read is

    right    the arrays of a step that was saved, all of them, also if it is the step before
    named    an error that names the damaged file, an array, or the checkpoint
    error    an error that names none of these
    wrong    no error, and arrays that nobody has saved
    another shape than asked for    no error, and the arrays as they were saved

Every row is printed as counts of these. All three have their defaults.
"""
import argparse
import collections
import contextlib
import logging
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time

import numpy as np

NUM_ARRAYS, SHAPE = 8, (160, 200)
Arrays = dict[str, np.ndarray]


def arrays_of(step: int, writer: int = 0) -> Arrays:
    """The arrays of a step: float32, normally distributed, as weights are."""
    generator = np.random.default_rng([step, writer])
    return {f"weight_{number}": generator.standard_normal(SHAPE, np.float32) for number in range(NUM_ARRAYS)}


class Vqim:
    """Our own."""

    index = ("commit.json", "metadata.json", "config.gin", "data", "manifest.ocdbt")

    def __init__(self, folder: pathlib.Path) -> None:
        from vqim.checkpoint.manager import CheckpointManager
        self._manager = CheckpointManager(folder)

    def save(self, step: int, arrays: Arrays) -> None:
        from vqim.checkpoint.store import HostArray
        self._manager.save(step, {name: HostArray.whole(array) for name, array in arrays.items()}, {}, config="",
                           data_position={"step": step})
        self._manager.wait()

    def read(self, shape: tuple[int, ...]) -> tuple[int, Arrays]:
        checkpoint = self._manager.open()
        checkpoint.data_position()
        checkpoint.check({name: (shape, np.dtype(np.float32)) for name in arrays_of(0)})
        return checkpoint.step, {name: checkpoint.read(name) for name in arrays_of(0)}


class Orbax:
    """orbax's CheckpointManager with StandardSave."""

    index = ("_CHECKPOINT_METADATA", "_METADATA", "_sharding", "manifest.ocdbt")

    def __init__(self, folder: pathlib.Path) -> None:
        import orbax.checkpoint as ocp
        logging.disable(logging.ERROR)
        self._args = ocp.args
        folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(folder)

    def save(self, step: int, arrays: Arrays) -> None:
        self._manager.save(step, args=self._args.StandardSave(arrays), force=True)
        self._manager.wait_until_finished()

    def read(self, shape: tuple[int, ...]) -> tuple[int, Arrays]:
        step = self._manager.latest_step()
        like = {name: np.empty(shape, np.float32) for name in arrays_of(0)}
        found = self._manager.restore(step, args=self._args.StandardRestore(like))
        return step, {name: np.asarray(array) for name, array in found.items()}


class Distributed:
    """torch.distributed.checkpoint, a folder a step."""

    index = (".metadata",)

    def __init__(self, folder: pathlib.Path) -> None:
        import warnings

        import torch
        import torch.distributed.checkpoint as dcp
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        self._folder, self._dcp, self._torch = folder, dcp, torch

    def save(self, step: int, arrays: Arrays) -> None:
        state = {name: self._torch.from_numpy(array) for name, array in arrays.items()}
        self._dcp.save(state, checkpoint_id=self._folder / str(step))

    def read(self, shape: tuple[int, ...]) -> tuple[int, Arrays]:
        step = max((int(path.name) for path in self._folder.iterdir() if (path / ".metadata").exists()), default=None)
        if step is None:
            raise FileNotFoundError(f"{self._folder} has no step")
        state = {name: self._torch.zeros(shape) for name in arrays_of(0)}
        self._dcp.load(state, checkpoint_id=self._folder / str(step))
        return step, {name: tensor.numpy() for name, tensor in state.items()}


LIBRARIES = {"vqim": Vqim, "orbax": Orbax, "torch.distributed.checkpoint": Distributed}
PRELOADED = ("torch.distributed.checkpoint", "vqim.checkpoint.manager", "vqim.checkpoint.store", "orbax.checkpoint")


def outcome(library: str, folder: pathlib.Path, damaged: str = "", shape: tuple[int, ...] = SHAPE) -> str:
    """Reads the newest step; `damaged` is the path of the file that was changed, below the folder."""
    try:
        step, found = LIBRARIES[library](folder).read(shape)
    except BaseException as error:
        text = f"{error!r} {error.__cause__!r} {error.__context__!r}"
        names = [name for name in (pathlib.Path(damaged).name, str(folder), *arrays_of(0)) if name]
        return "named" if any(name in text for name in names) else f"error ({type(error).__name__})"
    if {array.shape for array in found.values()} != {shape}:
        return "another shape than asked for"
    same = [writer for writer in range(3) if all(
        found[name].tobytes() == array.tobytes() for name, array in arrays_of(step, writer).items())]
    return "right" if same else "wrong"


# ---- What children do. Everything runs in children: they may be killed, hang, or take their process down.

def save_steps(library: str, folder: pathlib.Path, steps: list[int], writer: int, file_size: int | None, pipe) -> None:
    """Saves steps; says so at its beginning and end, where the arguments let it come to its end."""
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        saving = LIBRARIES[library](folder)
        arrays = {step: arrays_of(step, writer) for step in steps[:50]}
        pipe.send("ready")
        try:
            for step in steps:
                saving.save(step, arrays.get(step) or arrays_of(step, writer))
            pipe.send("saved")
        except BaseException as error:
            pipe.send(f"refused ({type(error).__name__}: {str(error)[:200]})")


def read_all(library: str, trials: list[tuple[pathlib.Path, str, tuple[int, ...]]], pipe) -> None:
    """Reads the newest step of each folder."""
    for folder, damaged, shape in trials:
        pipe.send(outcome(library, folder, damaged, shape))


class Bench:
    """Trials with one library in a folder."""

    def __init__(self, library: str, folder: pathlib.Path, generator: random.Random, trials: int) -> None:
        self.library, self._folder, self._random, self._trials = library, folder, generator, trials
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOADED))

    def _start(self, target, *arguments):
        mine, theirs = self._context.Pipe()
        process = self._context.Process(target=target, args=(self.library, *arguments, theirs))
        process.start()
        theirs.close()
        return process, mine

    def _saved(self, folder: pathlib.Path, steps: list[int], writer: int = 0, file_size: int | None = None) -> str:
        """Saves steps in a child; returns what became of it."""
        process, pipe = self._start(save_steps, folder, steps, writer, file_size)
        answers = self._answers(process, pipe, 2)
        return answers[-1]

    def _answers(self, process, pipe, count: int) -> list[str]:
        answers = []
        while len(answers) < count:
            if not pipe.poll(60):
                process.kill()
                answers.append("hangs")
            else:
                try:
                    answers.append(pipe.recv())
                except EOFError:
                    answers.append("died")
            if answers[-1] in ("hangs", "died"):
                break
        process.join()
        return answers

    def _read(self, trials: list[tuple[pathlib.Path, str, tuple[int, ...]]]) -> collections.Counter[str]:
        results: collections.Counter[str] = collections.Counter()
        while trials:
            process, pipe = self._start(read_all, trials)
            answers = self._answers(process, pipe, len(trials))
            results.update(answers)
            trials = trials[len(answers):]
        return results

    def _two_steps(self) -> pathlib.Path:
        folder = self._folder / "whole"
        if not folder.exists():
            answer = self._saved(folder, [1, 2])
            assert answer == "saved", answer
        return folder

    def _damage(self, kinds, change, count: int | None) -> collections.Counter[str]:
        """Reads copies of two steps, in each of which a file of the newer one was changed."""
        whole = self._two_steps()
        files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()
                 and path.stat().st_size and "2" in path.relative_to(whole).parts[0] and kinds(path)]
        trials = []
        for number in range(count or len(files)):
            copy = self._folder / f"trial_{number}"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole, copy)
            name = self._random.choice(files) if count else files[number]
            change(copy / name)
            trials.append((copy, str(name), SHAPE))
        results = self._read(trials)
        for copy, _, _ in trials:
            shutil.rmtree(copy)
        return results

    def _flip(self, path: pathlib.Path) -> None:
        data = bytearray(path.read_bytes())
        data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        path.write_bytes(data)

    def _is_index(self, path: pathlib.Path) -> bool:
        names = LIBRARIES[self.library].index
        return any(part in names or path.name == name for part in path.parts[-2:] for name in names)

    # ---- The rows.

    def kill(self) -> collections.Counter[str]:
        """kill -9 at a random time while steps are saved one after the other."""
        trials = []
        for number in range(self._trials // 2):
            folder = self._folder / f"killed_{number}"
            assert self._saved(folder, [1]) == "saved"
            process, pipe = self._start(save_steps, folder, list(range(2, 10_000)), 0, None)
            assert pipe.recv() == "ready"
            time.sleep(self._random.uniform(0.0, 0.5))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            trials.append((folder, "", SHAPE))
        return self._read(trials)

    def data(self) -> collections.Counter[str]:
        """A bit changed in the files of arrays."""
        return self._damage(lambda path: not self._is_index(path), self._flip, self._trials)

    def index(self) -> collections.Counter[str]:
        """A bit changed in the files that describe the arrays."""
        return self._damage(self._is_index, self._flip, self._trials)

    def missing(self) -> collections.Counter[str]:
        """Each file of the newest step missing in turn."""
        return self._damage(lambda path: True, lambda path: path.unlink(), None)

    def cut(self) -> collections.Counter[str]:
        """Each file of the newest step cut to half its length in turn."""
        return self._damage(lambda path: True, lambda path: os.truncate(path, path.stat().st_size // 2), None)

    def writers(self) -> collections.Counter[str]:
        """Two processes that save the same steps, with other values, at the same time."""
        results: collections.Counter[str] = collections.Counter()
        for number in range(max(1, self._trials // 8)):
            folder = self._folder / f"writers_{number}"
            both = [self._start(save_steps, folder, list(range(1, 6)), writer, None) for writer in (1, 2)]
            answers = [self._answers(process, pipe, 2)[-1] for process, pipe in both]
            results.update({"second refused": 1} if any(answer != "saved" for answer in answers) else {"both saved": 1})
            results.update(self._read([(folder, "", SHAPE)]))
        return results

    def shape(self) -> collections.Counter[str]:
        """Read into arrays of another shape."""
        return self._read([(self._two_steps(), "", (SHAPE[0], SHAPE[1] + 8)),
                           (self._two_steps(), "", (SHAPE[0] - 8, SHAPE[1]))])

    def full(self) -> collections.Counter[str]:
        """A save for which there is no room: files may not grow beyond a limit."""
        results: collections.Counter[str] = collections.Counter()
        for size in (20_000, 100_000, 400_000):
            folder = self._folder / f"full_{size}"
            assert self._saved(folder, [1]) == "saved"
            answer = self._saved(folder, [2], file_size=size)
            results.update({"save fails" if answer != "saved" else "SAVE CLAIMS SUCCESS": 1})
            results.update(self._read([(folder, "", SHAPE)]))
        return results


ROWS = ("kill", "data", "index", "missing", "cut", "writers", "shape", "full")


def main() -> None:
    """Prints the rows that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--libraries", default=",".join(LIBRARIES))
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    wrong = False
    for row in arguments.rows.split(","):
        for library in arguments.libraries.split(","):
            with tempfile.TemporaryDirectory() as folder:
                bench = Bench(library, pathlib.Path(folder), random.Random(arguments.seed), arguments.trials)
                results = getattr(bench, row)()
            counts = ", ".join(f"{count} {result}" for result, count in sorted(results.items()))
            print(f"{row:8} {library:28} {counts}", flush=True)
            wrong |= library == "vqim" and any(result.startswith(("wrong", "error", "hangs", "died", "SAVE"))
                                               for result in results)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
