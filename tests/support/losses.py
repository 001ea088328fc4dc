"""Runs small trainings of a checkout and keeps their numbers, to show that a refactoring changed none of them.

    python tests/support/losses.py --tree=../old --cases=tests/support/equality --out=old.json --threads=1
    python tests/support/losses.py --compare old.json new.json [--also=old_2threads.json]

A case is a file NAME.gin in the folder of cases; what it includes is looked for in the tree. `_settings.gin` there is
read after each of them: how many steps, all of them logged. A first line `# needs TOKENIZER_RUN=tokenizer` has the case
`tokenizer` run before, and gives its run directory to the macro TOKENIZER_RUN.
"""
import argparse
import importlib.metadata
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

IGNORED = re.compile(r"speed/|time")  # what no two runs have in common
FLAGS = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
FLAGS.add_argument("--tree", type=Path, help="the checkout whose launch.train runs")
FLAGS.add_argument("--cases", type=Path, help="the folder of gin files")
FLAGS.add_argument("--out", type=Path, help="the JSON file for the numbers")
FLAGS.add_argument("--threads", type=int, default=1, help="of the CPU; sums depend on it")
FLAGS.add_argument("--only", help="run this case, after those that it needs; the others in OUT stay")
FLAGS.add_argument("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"), help="print how two such files differ")
FLAGS.add_argument("--also", type=Path, help="numbers of the old code with other threads: how much it varies itself")

Metrics = dict[str, dict[str, float | None]]
"""By name, then by step; None stands for a value that was not finite."""


def main() -> None:
    """Runs cases, or compares what was run; exits with 1 if a case failed or two numbers differ."""
    arguments = FLAGS.parse_args()
    if arguments.compare:
        old, new = (json.loads(path.read_text())["cases"] for path in arguments.compare)
        also = json.loads(arguments.also.read_text())["cases"] if arguments.also else None
        sys.exit(0 if compare(old, new, also) else 1)
    if not (arguments.tree and arguments.cases and arguments.out):
        FLAGS.error("give --tree, --cases and --out, or --compare")
    ended_well = run_cases(
        arguments.tree.resolve(), arguments.cases.resolve(), arguments.out, arguments.threads, arguments.only)
    sys.exit(0 if ended_well else 1)


def run_cases(tree: Path, folder: Path, out: Path, threads: int, only: str | None) -> bool:
    """Runs all cases, or one and what it needs, and writes their numbers to `out`; whether all ended well."""
    probed = subprocess.run([sys.executable, "-c", "import vqim; print(vqim.__file__)"], cwd=tree, check=True,
                            capture_output=True, text=True).stdout.strip()
    if not Path(probed).resolve().is_relative_to(tree):
        sys.exit(f"In {tree}, `import vqim` finds {probed}.")
    head = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=tree, capture_output=True, text=True)
    kept = json.loads(out.read_text())["cases"] if only and out.exists() else {}
    result = {"tree": str(tree), "commit": head.stdout.strip(), "threads": threads,
              "torch": importlib.metadata.version("torch"), "cases": kept}
    failed: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="losses-") as runs:
        for name in in_order(folder, only):
            kept.pop(name, None)
            lost = failed.intersection(needs(folder, name).values())
            start = time.perf_counter()
            problem = f"skipped without {', '.join(lost)}" if lost else train(tree, folder, name, Path(runs), threads)
            seconds = round(time.perf_counter() - start, 1)
            print(f"{name}: {problem or f'{seconds} s'}", flush=True)
            if problem:
                failed.add(name)
            else:
                kept[name] = {"seconds": seconds, "metrics": read_metrics(Path(runs) / name)}
            out.write_text(json.dumps(result, indent=1) + "\n")
    return not failed


def in_order(folder: Path, only: str | None) -> list[str]:
    """The names of the cases to run, each after those that it needs."""
    names = [path.stem for path in sorted(folder.glob("*.gin")) if not path.stem.startswith("_")]
    if only and only not in names:
        sys.exit(f"There is no case {only!r}; there are {', '.join(names)}.")
    order: list[str] = []

    def add(name: str) -> None:
        for needed in needs(folder, name).values():
            add(needed)
        if name not in order:
            order.append(name)

    for name in [only] if only else names:
        add(name)
    return order


def needs(folder: Path, name: str) -> dict[str, str]:
    """What the first line of a case says: by macro, the case whose run directory it stands for."""
    first = (folder / f"{name}.gin").read_text().partition("\n")[0]
    return dict(re.findall(r"(\w+)=(\w+)", first)) if first.startswith("# needs ") else {}


def train(tree: Path, folder: Path, name: str, runs: Path, threads: int) -> str | None:
    """Trains one case in `runs`; what went wrong, or None."""
    command = [sys.executable, "-m", "launch.train", f"--gin_file={folder / name}.gin",
               f"--gin_file={folder / '_settings.gin'}", f"--workdir={runs / name}", "--runtime=torch",
               *(f'--gin_bindings={macro} = "{runs / case}"' for macro, case in needs(folder, name).items())]
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    return f"FAILED with exit code {done.returncode}\n{done.stderr[-3000:]}" if done.returncode else None


def read_metrics(workdir: Path) -> Metrics:
    """All numbers of a run's metrics.jsonl but those that measure time."""
    metrics: Metrics = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        step = str(row.pop("step"))
        for name, value in row.items():
            if not IGNORED.match(name) and (value is None or isinstance(value, int | float)):
                metrics.setdefault(name, {})[step] = value
    return metrics


def compare(old: dict[str, Any], new: dict[str, Any], also: dict[str, Any] | None) -> bool:
    """Prints a table of the cases and what is on one side only; whether all is there and equal bit for bit.

    Differences are relative to the larger magnitude: of the loss at the first step and at the worst one, and the
    largest of all metrics at all steps. The last four columns have those between the old numbers and `also`.
    """
    head = ["first loss", "loss", "largest", "of metric"]
    rows = [["case", *head, "equal metrics", *(["|", *head] if also is not None else [])]]
    notes = [f"{name}: only in the {'old' if name in old else 'new'} file" for name in sorted(old.keys() ^ new.keys())]
    unequal = 0
    for name in sorted(old.keys() & new.keys()):
        a, b = old[name]["metrics"], new[name]["metrics"]
        common = [metric for metric in a if metric in b]
        equal = [metric for metric in common if repr(a[metric]) == repr(b[metric])]
        unequal += len(common) - len(equal)
        rows.append([name, *differences(a, b), f"{len(equal)} of {len(common)}"])
        if also is not None and name in also:
            rows[-1] += ["|", *differences(a, also[name]["metrics"])]
        for side, here, there in (("old", a, b), ("new", b, a)):
            for metric in here.keys() - common:
                twins = [other for other in there.keys() - common if repr(there[other]) == repr(here[metric])]
                notes.append(f"{name}: {metric}: only in the {side} file{f', as {twins} in the other' * bool(twins)}")
        notes += [f"{name}: {metric}: at other steps" for metric in common if a[metric].keys() != b[metric].keys()]
    widths = [max(map(len, column)) for column in itertools.zip_longest(*rows, fillvalue="")]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
    print(*sorted(notes), sep="\n")
    return not notes and not unequal


def differences(a: Metrics, b: Metrics) -> list[str]:
    """Of the loss at the first step and at any, and the largest of all, with its metric and step."""
    found = [(difference(value, b[name][step]), name, step)
             for name in a.keys() & b.keys() for step, value in a[name].items() if step in b[name]]
    losses = [(worst, step) for worst, name, step in found if name == "loss"]
    (worst, name, step), start = max(found, default=(0.0, "", "")), max(x for x, step in losses if step == "1")
    shown = ["equal" if not value else f"{value:.1e}" for value in (start, max(losses)[0], worst)]
    return [*shown, f"{name} at {step}" if worst else ""]


def difference(a: float | None, b: float | None) -> float:
    """Relative to the larger magnitude; infinite where one of the two is not finite."""
    if repr(a) == repr(b):
        return 0.0
    return math.inf if a is None or b is None else abs(a - b) / (max(abs(a), abs(b)) or 1.0)


if __name__ == "__main__":
    main()
