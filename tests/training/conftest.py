import json

import pytest

from tests.support.processes import run_on_xla
from vqim.checkpoint.manager import CheckpointManager


class Plans:
    """Runs plans (see plan.py) in processes of their own, and reads what is left of them."""

    def __init__(self, directory):
        self.directory = directory

    def run(self, runtime, work, settings=(), num_devices=1, files=(), returncode=0):
        """Does the pieces of work in one process; returns their results."""
        plan, results = self.directory / "plan.json", self.directory / "results.json"
        plan.write_text(json.dumps(
            {"files": list(files), "settings": list(settings), "work": work, "results": str(results)}))
        run_on_xla("tests.training.plan", runtime, plan, num_devices=num_devices, returncode=returncode, timeout=600)
        return json.loads(results.read_text()) if returncode == 0 else None

    def rows(self, run, prefix):
        """What a run has written under names that begin like this: a dict for each line of metrics.jsonl with any."""
        lines = (self.directory / run / "metrics.jsonl").read_text().splitlines()
        rows = [{name: value for name, value in json.loads(line).items() if name.startswith(prefix)} for line in lines]
        return [row for row in rows if row]

    def losses(self, run):
        """The losses that a run has written, by step."""
        lines = (self.directory / run / "metrics.jsonl").read_text().splitlines()
        return {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}

    def open(self, run, step=None):
        """A checkpoint of a run."""
        return CheckpointManager(self.directory / run / "checkpoints").open(step)

    def checkpoint(self, run, step=None):
        """All arrays of a checkpoint, and where the data were."""
        checkpoint = self.open(run, step)
        return {name: checkpoint.read(name) for name in checkpoint.names()}, checkpoint.data_position()


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """`Plans` in a directory of this test file."""
    return Plans(tmp_path_factory.mktemp("plans"))
