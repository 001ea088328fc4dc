"""Runs whose directory is in an object store: the same bits as on a disk, whatever interrupts them."""
import itertools
import signal
import time
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

import vqim
from tests.launch.verbs import Verbs, train_flags
from tests.support import object_store
from vqim.checkpoint.files import open_files
from vqim.checkpoint.manager import CheckpointManager
from vqim.training import summaries
from vqim.training.summaries import Summaries, read_metrics

TOKENIZER = "gin/debug/tokenizer_tiny.gin"
SHORT = ("train.num_steps = 6", "train.save_every = 2", "train.log_every = 1", "evaluation.Reconstructions.every = 3",
         "train.batch_size = 8")


@pytest.fixture(scope="module")
def address():
    """The address of an S3 server."""
    with object_store.s3_server() as address:
        yield address


@pytest.fixture
def bucket(address, monkeypatch):
    """The URL of an empty bucket, which this process and its children may read and write."""
    object_store.use(monkeypatch, address)
    monkeypatch.setenv("S3_ENDPOINT", address)  # TensorBoard's word for it
    return object_store.new_bucket(address)


@pytest.fixture
def verbs(tmp_path, tmp_path_factory):
    """Runs commands in an empty working directory; they share the machine with the server."""
    return Verbs(tmp_path, tmp_path_factory.mktemp("logs"), seconds=400)


def arrays(run):
    checkpoint = CheckpointManager(f"{run}/checkpoints").open()
    return {name: checkpoint.read(name).tobytes() for name in checkpoint.names()}, checkpoint.data_position()


def scalars(run, name):
    events = EventAccumulator(str(run)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_a_killed_run_in_a_bucket_ends_with_the_bits_of_one_on_a_disk(verbs, bucket):
    verbs.train("tokenizer_tiny", *SHORT, workdir="run")
    running = verbs.start("train", *train_flags(TOKENIZER, f"{bucket}/run", *SHORT))
    running.wait_for(r" step 4/")
    running.signal(signal.SIGKILL)
    running.end()
    done = verbs.train("tokenizer_tiny", *SHORT, workdir=f"{bucket}/run")
    disk = verbs.directory / "run"
    assert "Going on from step" in done.err
    assert arrays(f"{bucket}/run") == arrays(disk)
    assert [row["step"] for row in read_metrics(f"{bucket}/run") if "loss" in row] == list(range(1, 7))
    assert scalars(f"{bucket}/run", "loss") == scalars(disk, "loss")
    assert "lock.json" not in open_files(f"{bucket}/run").children()

    # Readers.
    done = verbs("evaluate", f"--workdir={bucket}/run", "--out=results")
    assert done.code == 0 and "evaluation/psnr: " in done.out, done.err
    assert (verbs.directory / "results/evaluation.json").exists()
    assert vqim.load(f"{bucket}/run", runtime="torch").step == 6
    done = verbs("checkpoint", "copy", f"--workdir={bucket}/run", "--out=back")
    assert done.code == 0, done.err
    assert arrays(verbs.directory / "back") == arrays(disk)
    done = verbs("checkpoint", "copy", "--workdir=back", f"--out={bucket}/again")
    assert done.code == 0, done.err
    assert arrays(f"{bucket}/again") == arrays(disk)


def test_a_run_whose_credentials_are_lost_ends_with_a_sentence(verbs, bucket, address):
    running = verbs.start("train", *train_flags(TOKENIZER, f"{bucket}/run", *SHORT[1:]))
    running.wait_for(r" step 3/")
    object_store.refuse_everybody(address)
    try:
        done = running.end()
    finally:
        object_store.refuse_everybody(address, after=10**9)
    assert done.code == 1
    assert "The store refuses this process: look at its credentials" in done.err
    assert "Traceback" not in done.err


def test_a_large_file_of_events_is_followed_by_another_and_tensorboard_reads_both(bucket, monkeypatch):
    monkeypatch.setattr(summaries, "_LARGE_BYTES", 2000)
    # TensorBoard reads files in the order of their names: a second, then a number that is not padded (10 before 9).
    # In a run files are a MiB, and hardly begin in the same second.
    seconds = itertools.count(int(time.time()))
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: next(seconds)))
    written = Summaries(f"{bucket}/run", 0)
    for step in range(1, 41):
        written.write(step, {"loss": step / 2, "text": "x" * 100})
    written.close()
    names = [name for name in open_files(f"{bucket}/run").children() if name.startswith("events")]
    assert len(names) > 2
    assert scalars(f"{bucket}/run", "loss") == [(step, step / 2) for step in range(1, 41)]
