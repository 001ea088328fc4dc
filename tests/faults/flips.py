"""Changes single bits of every kind of file that a run's readers need, and looks whether that is found.

    python -m tests.faults.flips --run=runs/debug/tokenizer --flips=1000 [--seed=0]

A flip is found if opening or reading fails with an error that names the checkpoint or the file. It is harmless if all
that is read is as before, bit for bit. Anything else is undetected, and the program ends with code 1. The run itself is
not changed: a copy is.
"""
import argparse
import collections
import pathlib
import random
import re
import shutil
import sys
import tempfile

import vqim.registry.components  # noqa: F401  gin knows the components from here on
from vqim.checkpoint.errors import CheckpointError
from vqim.checkpoint.exported import Exported, export
from vqim.checkpoint.manager import CheckpointManager
from vqim.registry.run_config import read_config
from vqim.training.facts import read_facts

GOOD = ("found", "harmless")


def read(run: pathlib.Path) -> dict[str, object]:
    """All that readers take from a run with one checkpoint, and from what was exported of it."""
    checkpoint = CheckpointManager(run / "checkpoints").open()
    found: dict[str, object] = {name: checkpoint.read(name).tobytes() for name in checkpoint.names()}
    found |= {"config": checkpoint.config, "position": checkpoint.data_position(), "metadata": checkpoint.metadata,
              "facts": read_facts(run), "run's config": read_config(str(run)).text()}
    exported = Exported(run / "net.safetensors")
    found |= {f"exported/{name}": exported.read(name).tobytes() for name in exported.names()}
    return found | {"about": exported.about}


def kind_of(path: pathlib.Path) -> str:
    """The path of a file with its numbers, and the names that tensorstore gives to data, left out."""
    name = re.sub(r"(?<=/d/)\w+", "<data>", path.as_posix())
    return re.sub(r"\d+", "<n>", name)


def flip(source: pathlib.Path, count: int, seed: int) -> collections.Counter[tuple[str, str]]:
    """Flips bits in a copy of a run's newest step, the same number in every kind of file; counts (kind, result)."""
    generator = random.Random(seed)
    results: collections.Counter[tuple[str, str]] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        checkpoint = CheckpointManager(source / "checkpoints").open()
        name = f"checkpoints/{checkpoint.step:08d}"
        shutil.copytree(source / name, run / name)
        for small in ("run.json", "config.gin"):
            shutil.copy(source / small, run / small)
        params = checkpoint.names("^params/")
        export(run / "net.safetensors", checkpoint, dict(zip(params, params, strict=True)), {
            "step": checkpoint.step, "seed": 0, "config": checkpoint.config})
        whole = read(run)
        kinds = collections.defaultdict(list)
        for path in sorted(run.rglob("*")):
            if path.is_file() and path.stat().st_size:
                kinds[kind_of(path.relative_to(run))].append(path)
        for number in range(count):
            kind = sorted(kinds)[number % len(kinds)]
            path = generator.choice(kinds[kind])
            before = path.read_bytes()
            place, bit = generator.randrange(len(before)), generator.randrange(8)
            path.write_bytes(before[:place] + bytes([before[place] ^ 1 << bit]) + before[place + 1:])
            result = outcome(run, path, whole)
            results[kind, result] += 1
            if result not in GOOD:
                print(f"{path.relative_to(run)} byte {place} bit {bit}: {result}", flush=True)
            path.write_bytes(before)
    return results


def outcome(run: pathlib.Path, changed: pathlib.Path, whole: dict[str, object]) -> str:
    """What readers make of a run of which a file was changed."""
    try:
        return "harmless" if read(run) == whole else "UNDETECTED"
    except (CheckpointError, ValueError) as error:
        return "found" if isinstance(error, CheckpointError) or changed.name in str(error) else "NOT NAMED"
    except Exception as error:
        return f"ANOTHER ERROR, {type(error).__name__}"


def main() -> None:
    """Flips as often as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    results = flip(arguments.run, arguments.flips, arguments.seed)
    for (kind, result), count in sorted(results.items()):
        print(f"{count:5} {result:10} {kind}")
    bad = sum(count for (_, result), count in results.items() if result not in GOOD)
    print(f"{arguments.flips} flips, {bad} undetected or without a name")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
