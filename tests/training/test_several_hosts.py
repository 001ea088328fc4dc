"""Two processes that train together, one of which is sent SIGTERM; then one process goes on by itself."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.support.processes import ROOT
from tests.training import one_host
from vqim.checkpoint.manager import CheckpointManager
from vqim.data.order import shuffled
from vqim.runtime.torch import TorchRuntime
from vqim.training.loop import train
from vqim.training.watchdog import EXIT_CODE


class Process:
    """One of them."""

    def __init__(self, folder, index, port, num_steps=1000000, fails_at=0, scores=()):
        self._log = folder / f"{index}.log"
        command = [sys.executable, "-m", "tests.training.one_host", str(index), "2", str(port), str(folder / "run"),
                   *map(str, (num_steps, fails_at, *scores))]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        self.port = int(self._process.stdout.readline())

    def wait_for(self, text):
        """Until it has logged this."""
        end = time.monotonic() + 60
        while text not in self._log.read_text():
            assert self._process.poll() is None and time.monotonic() < end, self._log.read_text()
            time.sleep(0.02)

    def terminate(self):
        """Sends it SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def end(self):
        """Its exit code, and its log."""
        return self._process.wait(300), self._log.read_text()

    def result(self):
        """What it printed last."""
        out, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, self._log.read_text()
        return json.loads(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def results(folder):
    """Of both, after the second had SIGTERM."""
    first = Process(folder, 0, 0)
    second = Process(folder, 1, first.port)
    second.wait_for("step 20/")
    second.terminate()
    return [first.result(), second.result()]


def counts(num_steps):
    """How often each example has come after some steps."""
    _, records = shuffled(np.arange(num_steps * one_host.BATCH_SIZE), one_host.NUM_EXAMPLES, seed=0)
    return np.bincount(records, minlength=one_host.NUM_EXAMPLES)


def test_a_signal_to_one_process_stops_both_after_the_same_step(results):
    assert [result["interrupted"] for result in results] == ["SIGTERM"] * 2
    assert results[0]["step"] == results[1]["step"] >= 20


def test_each_process_loads_its_half_of_every_batch(results):
    _, records = shuffled(np.arange(results[0]["step"] * one_host.BATCH_SIZE), one_host.NUM_EXAMPLES, seed=0)
    halves = records.reshape(-1, 2, one_host.BATCH_SIZE // 2)
    assert [result["loaded"] for result in results] == [halves[:, index].ravel().tolist() for index in range(2)]


def test_each_process_writes_its_shards_of_one_checkpoint(results, folder):
    checkpoint = CheckpointManager(folder / "run/checkpoints").open()
    assert checkpoint.step == results[0]["step"] and checkpoint.metadata["process_count"] == 2
    np.testing.assert_array_equal(checkpoint.read("params/counts"), counts(checkpoint.step))
    step = folder / "run/checkpoints" / f"{checkpoint.step:08d}"
    held = [json.loads((step / f"shards/{index}.json").read_text()) for index in range(2)]
    assert [shards["params/counts"] for shards in held] != [held[0]["params/counts"]] * 2


def test_another_number_of_processes_goes_on_where_they_stopped(results, folder):
    num_steps = results[0]["step"] + 7
    finished = train(one_host.experiment(num_steps), workdir=folder / "run", runtime=TorchRuntime(), config="")
    np.testing.assert_array_equal(finished.state.arrays["params/counts"].numpy(), counts(num_steps))


def test_only_process_0_writes_metrics(results, folder):
    rows = (folder / "run/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(row)["step"] for row in rows]
    assert len(steps) == len(set(steps))


def test_when_one_process_fails_the_others_end_too_and_the_last_checkpoint_stays(tmp_path):
    first = Process(tmp_path, 0, 0, fails_at=10**9)
    second = Process(tmp_path, 1, first.port, fails_at=25)
    code, log = second.end()
    assert code == 1 and "OSError: the disk is gone" in log
    code, log = first.end()
    assert code == EXIT_CODE
    assert "Process 1 has ended with OSError: the disk is gone. All processes are needed for a step" in log
    checkpoint = CheckpointManager(tmp_path / "run/checkpoints").open()
    assert checkpoint.step == 20 and checkpoint.verify() == []


def test_the_best_step_is_kept_when_several_processes_evaluate(tmp_path):
    first = Process(tmp_path, 0, 0, num_steps=16, scores=[5, 9, 1, 2])
    second = Process(tmp_path, 1, first.port, num_steps=16, scores=[5, 9, 1, 2])
    assert [process.result()["step"] for process in (first, second)] == [16, 16]
    manager = CheckpointManager(tmp_path / "run/checkpoints")
    assert manager.steps() == [8, 16] and manager.open(8).verify() == []
