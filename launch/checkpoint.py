"""Looks after a run's checkpoints.

    python -m launch.checkpoint list --workdir=runs/tokenizer
    python -m launch.checkpoint show --workdir=runs/tokenizer [--restore=1000]
    python -m launch.checkpoint verify --workdir=runs/tokenizer [--restore=1000]
    python -m launch.checkpoint copy --workdir=runs/tokenizer --out=s3://bucket/copy [--restore=latest_valid]
    python -m launch.checkpoint prune --workdir=runs/tokenizer --keep_latest=1 --keep_every=10000
    python -m launch.checkpoint export --workdir=runs/tokenizer --out=tokenizer.safetensors [--noema]

`list` shows all steps; `show` what one of them holds; `verify` reads every byte of all steps, or of one; `copy` makes a
run directory of one step; `prune` removes what has been set aside, and all steps but those it is told to keep and, if
these are damaged, the newest whole one; `export` writes the networks of one step, with the configuration, as one file
that `vqim.load` opens.
"""
import os
import sys
import time
from collections import Counter
from pathlib import Path

from absl import flags as absl_flags
from absl import logging

from vqim.checkpoint import layout, lock
from vqim.checkpoint.errors import CheckpointError, NoCheckpointError
from vqim.checkpoint.exported import export
from vqim.checkpoint.files import Files, is_url, open_files
from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.policy import Keep, KeepEvery, KeepLatest, Saved, kept_steps
from vqim.checkpoint.reader import Checkpoint, read_saved
from vqim.registry.config import ConfigError
from vqim.registry.stamp import CHANGED, stamped, was_changed
from vqim.training.facts import read_facts

from . import flags, session

WORDS = ("list", "show", "verify", "copy", "prune", "export")

OUT = absl_flags.DEFINE_string("out", None, "copy: the new run directory, a path or a URL. export: the file.")
EMA = absl_flags.DEFINE_bool("ema", True, "export: moving averages in place of the parameters, where they are kept.")
KEEP_LATEST = absl_flags.DEFINE_integer("keep_latest", None, "prune: how many of the newest steps stay.", lower_bound=1)
KEEP_EVERY = absl_flags.DEFINE_integer("keep_every", None, "prune: multiples of this stay too.", lower_bound=1)


def main(word: str) -> None:
    """Does what a word says."""
    workdir = session.run_directory()
    manager = CheckpointManager(f"{workdir}/checkpoints")
    {"list": _list, "show": _show, "verify": _verify, "copy": _copy, "prune": _prune, "export": _export}[word](
        workdir, manager)


def _list(workdir: str, manager: CheckpointManager) -> None:
    steps = manager.steps()
    for step in steps:
        saved = read_saved(open_files(f"{workdir}/checkpoints"), step)
        when = "" if saved.saved_at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(saved.saved_at))
        metrics = "  ".join(f"{name} {value:.5g}" for name, value in sorted(saved.metrics.items())
                            if name == "loss" or name.startswith(("evaluation/", "samples/")))
        size = "" if is_url(workdir) else _mib(_folder_bytes(workdir, step))
        print(f"{step:>9}  {when:19}  {size:>12}  {metrics}".rstrip())
    if not steps:
        print(f"{workdir} has no checkpoint")
    for name in _aside(workdir):
        print(f"set aside: {name}")


def _show(workdir: str, manager: CheckpointManager) -> None:
    checkpoint = manager.open(flags.restore())
    arrays: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for name in checkpoint.names():
        shape, dtype = checkpoint.spec(name)
        section = "/".join(name.split("/")[:2])
        size = dtype.itemsize
        for length in shape:
            size *= length
        arrays[section] += size
        numbers[section] += 1
    print(f"step {checkpoint.step} of {workdir}")
    for name, value in sorted(checkpoint.metadata.items()):
        if name not in ("arrays", "step"):
            print(f"{name}: {value}")
    for name, value in sorted(read_saved(open_files(f"{workdir}/checkpoints"), checkpoint.step).metrics.items()):
        print(f"metric {name}: {value:.6g}")
    print(f"data position: {checkpoint.data_position()}")
    for section in sorted(arrays):
        print(f"{section}: {numbers[section]} arrays, {_mib(arrays[section])}")


def _verify(workdir: str, manager: CheckpointManager) -> None:
    chosen = flags.restore()
    steps = manager.steps() if flags.RESTORE.value == "latest" else [manager.open(chosen).step]
    if not steps:
        raise ConfigError(f"--workdir: {workdir} has no checkpoint")
    damaged = 0
    for step in steps:
        problems = _problems(manager, step)
        if problems is None:  # the run that trains there has removed it meanwhile
            continue
        damaged += bool(problems)
        print(f"step {step}: " + ("whole" if not problems else "damaged\n  " + "\n  ".join(problems)))
    if damaged:
        sys.exit(f"{damaged} of {len(steps)} steps are damaged; --restore=latest_valid passes over them.")


def _problems(manager: CheckpointManager, step: int) -> list[str] | None:
    """What is damaged in a step; None if it is no longer there."""
    try:
        return manager.open(step).verify()
    except NoCheckpointError as error:
        return [str(error)] if step in manager.steps() else None
    except CheckpointError as error:
        return [str(error)]


def _copy(workdir: str, manager: CheckpointManager) -> None:
    out = _out(must_be_new=True)
    checkpoint = manager.open(flags.restore())
    problems = checkpoint.verify()
    if problems:
        raise CheckpointError(f"step {checkpoint.step} is not copied: {'; '.join(problems[:5])}")
    source, target = open_files(workdir), open_files(out)
    for name in ("config.gin", "operative_config.gin", "run.json"):
        if (data := source.read(name)) is None:
            continue
        if name == "config.gin" and was_changed(data.decode(errors="replace")):
            logging.warning("%s/%s. The copy has the configuration in checkpoint %d.", workdir, CHANGED,
                            checkpoint.step)
            data = stamped(checkpoint.config).encode()
        target.write(name, data)
    step = f"checkpoints/{layout.step_name(checkpoint.step)}"
    working = f"checkpoints/{layout.temporary_name(checkpoint.step)}" if target.can_rename else step
    # The file that makes the step exist is the last one.
    for name in sorted(source.paths(step), key=lambda name: name == layout.COMMIT_FILE):
        target.write(f"{working}/{name}", _read(source, f"{step}/{name}"))
    if target.can_rename:
        target.rename(working, step)
    copied = CheckpointManager(f"{out}/checkpoints").open(checkpoint.step).verify()
    if copied:
        raise CheckpointError(f"the copy is damaged: {'; '.join(copied[:5])}")
    print(f"step {checkpoint.step} in {out}")


def _read(files: Files, path: str) -> bytes:
    data = files.read(path)
    if data is None:
        raise CheckpointError(f"{files.location}/{path} was removed while it was being copied")
    return data


def _prune(workdir: str, manager: CheckpointManager) -> None:
    policies: list[Keep] = [*([KeepLatest(KEEP_LATEST.value)] if KEEP_LATEST.value else []),
                *([KeepEvery(KEEP_EVERY.value)] if KEEP_EVERY.value else [])]
    if not policies:
        raise ConfigError("--keep_latest or --keep_every must say what stays; got neither")
    try:
        with session.held(workdir):
            steps = manager.steps()
            kept = kept_steps(policies, [Saved(step) for step in steps])
            if not any(_problems(manager, step) == [] for step in kept):
                others = (step for step in reversed(steps) if step not in kept)
                whole = next((step for step in others if _problems(manager, step) == []), None)
                if whole is not None:  # nothing else could be gone on from
                    print(f"kept, since all that would stay is damaged: {whole}")
                    kept |= {whole}
            for step in sorted(set(steps) - kept):
                print(f"{'removed' if manager.remove(step) else 'being read, not removed'}: {step}")
            for name in _aside(workdir):
                open_files(f"{workdir}/checkpoints").remove(name)
                print(f"removed: {name}")
    except lock.LockedError as error:
        raise ConfigError(f"--workdir: {error}") from error
    print(f"kept: {', '.join(map(str, manager.steps())) or 'nothing'}")


def _export(workdir: str, manager: CheckpointManager) -> None:
    if is_url(OUT.value or ""):
        raise ConfigError(f"--out must be a file of this machine; got {OUT.value}")
    out = Path(_out(must_be_new=False))
    checkpoint = manager.open(flags.restore())
    names = exported_names(checkpoint, EMA.value)
    try:
        facts = read_facts(workdir)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    export(out, checkpoint, names, {
        "step": checkpoint.step, "seed": checkpoint.metadata["seed"], "ema": EMA.value,
        "config": checkpoint.config, "run": facts.as_json()})
    print(f"step {checkpoint.step}: {len(names)} arrays, {_mib(out.stat().st_size)}, in {out}")


def exported_names(checkpoint: Checkpoint, ema: bool) -> dict[str, str]:
    """The names in an exported file, and those in the checkpoint: what is needed to run the networks.

    An average of a parameter takes the parameter's name.
    """
    there = set(checkpoint.names("^(params|statistics|frozen)/"))
    averages = {name.replace("params/", "ema/", 1): name for name in there if name.startswith("params/")}
    names = {name: name for name in sorted(there)}
    if ema:
        names |= {averages[average]: average for average in checkpoint.names("^ema/") if average in averages}
    return names


def _out(must_be_new: bool) -> str:
    if not OUT.value:
        raise ConfigError("--out must say where to write; got none")
    if is_url(OUT.value):
        is_there, is_folder = bool(open_files(OUT.value).children()), True
    else:
        path = Path(os.path.expanduser(OUT.value))
        is_there, is_folder = path.exists(), path.is_dir()
    if is_there and (must_be_new or is_folder):
        raise ConfigError(f"--out must be {'new' if must_be_new else 'a file'}; {OUT.value} is there already")
    return os.path.expanduser(OUT.value)


def _aside(workdir: str) -> list[str]:
    """What has been set aside."""
    return [name for name in open_files(f"{workdir}/checkpoints").children() if name.endswith(layout.ASIDE_SUFFIX)]


def _folder_bytes(workdir: str, step: int) -> int:
    folder = Path(workdir) / "checkpoints" / layout.step_name(step)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


def run() -> None:
    """Entry point of the console script."""
    flags.run(main, WORDS, without=("gin_file", "gin_bindings", "gin_search_path"))


if __name__ == "__main__":
    run()
