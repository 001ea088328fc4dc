"""launch.train: progress, the same command again, interruptions, and what is left when something goes wrong."""
import json
import re
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.launch.verbs import train_flags
from vqim.checkpoint.manager import CheckpointManager
from vqim.training.summaries import read_metrics

TOKENIZER = "gin/debug/tokenizer_tiny.gin"

# A task whose images turn NaN at one step, a schedule whose rate does, an optimizer whose result does.
PLUGIN = """
import gin
import torch
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.training.gradient_task import GradientTask

BAD_STEP = {bad_step}

class Task(GradientTask):
    def train_step(self, state, batch, scalars, *where):
        images = torch.where(scalars["step"] == BAD_STEP, torch.nan, batch["images"].float())
        return super().train_step(state, {{**batch, "images": images}}, scalars, *where)

class Schedule(Constant):
    def __call__(self, step):
        return float("nan") if step == BAD_STEP else super().__call__(step)

class Optimizer(AdamW):
    def update(self, params, grads, slots, *, step, **scalars):
        metrics = super().update(params, grads, slots, step=step, **scalars)
        params["decoder/tower/norm/bias_D"].add_(torch.where(step == BAD_STEP, torch.nan, 0.0))
        return metrics

gin.register(Task, module="plugin")
gin.register(Optimizer, module="plugin")
gin.register(Schedule, module="plugin")
"""

POISONED = {
    "task": "train.task = @plugin.Task()\nplugin.Task.objective = @tokenizer.TokenizerObjective()\n",
    "schedule": "training.Learner.learning_rate = @plugin.Schedule()\nplugin.Schedule.peak = 1e-3\n",
}


def steps_logged(done):
    """The steps of the progress lines, and of the evaluations' lines."""
    return [int(step) for step in re.findall(r" step (\d+)/\d+ ", done.err)]


def checkpoints(run):
    return CheckpointManager(run / "checkpoints").steps()


def test_progress_shows_step_loss_rate_and_time_left(verbs):
    done = verbs.train("tokenizer_tiny", "train.num_steps = 3", "train.log_every = 1", workdir="run")
    number = r"\d+\.\d+"
    lines = re.findall(rf"\d\d:\d\d:\d\d step (\d)/3  loss {number}  {number} images/s  {number} steps/s  "
                       r"(\d+:\d\d:\d\d) left\n", done.err)
    assert [step for step, _ in lines] == ["1", "2", "3"]
    assert lines[-1][1] == "0:00:00"


def test_a_run_keeps_its_configuration_from_which_it_starts_again(verbs, runs, files):
    run = runs / "tokenizer"
    again = verbs("train", *train_flags("runs/debug/tokenizer/config.gin", "runs/debug/tokenizer"))
    assert again.code == 0, again.err
    # With all defaults, in another file, which is the same experiment too.
    (verbs.directory / "operative.gin").write_text((run / "operative_config.gin").read_text())
    assert "tokenizer.VectorQuantizer.commitment_weight = 0.25" not in (run / "config.gin").read_text()
    assert "VectorQuantizer.commitment_weight = 0.25" in (run / "operative_config.gin").read_text()
    done = verbs("train", *train_flags("operative.gin", "other"), "--dry_run")
    assert done.code == 0, done.err
    blocks = (run / "operative_config.gin").read_text().split("# Parameters for ")
    # A dry run does not open the data.
    assert "# Parameters for ".join(block for block in blocks if not block.startswith("Emoji:")) in done.out


def test_a_finished_runs_command_given_again_says_so_and_changes_no_array(verbs, runs, files):
    before = files(runs / "tokenizer")
    done = verbs.train("tokenizer_tiny", workdir="runs/debug/tokenizer")
    assert "Nothing to do: runs/debug/tokenizer has step 40 of 40." in done.err
    assert steps_logged(done) == []
    assert before.items() <= files(runs / "tokenizer").items()


def test_a_run_goes_on_with_more_steps_and_another_cadence(verbs, runs):
    done = verbs.train(
        "tokenizer_tiny", "train.num_steps = 44", "train.log_every = 2", workdir="runs/debug/tokenizer")
    assert "Going on from step 40 of runs/debug/tokenizer.\n" in done.err
    assert steps_logged(done) == [42, 44]
    assert checkpoints(runs / "tokenizer") == [40, 44]
    assert [row["step"] for row in read_metrics(runs / "tokenizer") if "loss" in row] == [10, 20, 30, 40, 42, 44]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_ends_the_run_and_the_same_command_goes_on(verbs, name):
    flags = train_flags(TOKENIZER, "run", "NUM_STEPS = 1000000")
    running = verbs.start("train", *flags)
    running.wait_for(r" step 10/")
    running.signal(getattr(signal, name))
    done = running.end()
    assert done.code == 1
    stopped = re.search(rf"Stopped on {name} at step (\d+) of 1000000; the same command goes on from here.", done.err)
    assert done.err.endswith(f"Interrupted by {name}.\n")
    assert "Traceback" not in done.err
    step = int(stopped[1])
    assert checkpoints(verbs.directory / "run")[-1] == step

    done = verbs("train", *flags, f"--gin_bindings=train.num_steps = {step + 1}")
    assert f"Going on from step {step} of run." in done.err
    assert steps_logged(done) == [step + 1]


def test_a_killed_run_goes_on_with_each_step_once_in_its_metrics_and_tensorboard(verbs):
    flags = train_flags(TOKENIZER, "run", "NUM_STEPS = 1000000")
    running = verbs.start("train", *flags)
    running.wait_for(r" step 30/")
    running.signal(signal.SIGKILL)
    assert running.end().code == -signal.SIGKILL
    rows = verbs.directory / "run/metrics.jsonl"
    with rows.open("a") as file:  # the kill may come in the middle of a line
        file.write('{"step": 30, "ti')

    done = verbs("train", *flags, "--gin_bindings=train.num_steps = 40")
    assert done.code == 0, done.err
    steps = [json.loads(line)["step"] for line in rows.read_text().splitlines() if '"loss"' in line]
    assert steps == [10, 20, 30, 40]
    events = EventAccumulator(str(verbs.directory / "run"), {"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("loss")] == [10, 20, 30, 40]


@pytest.mark.parametrize("poison, message", [
    ("task", "Stopped: step 13 met values that are not finite, in loss, "),
    ("schedule", "Stopped: step 13 is given learning_rate = nan, which is not finite; "),
])
def test_a_value_that_is_not_finite_stops_the_run_before_it_and_can_be_overcome(
        verbs, arrays, same, poison, message):
    (verbs.directory / "poisoned.gin").write_text(f"import plugin\ninclude '{TOKENIZER}'\n{POISONED[poison]}")
    plugin = verbs.directory / "plugin.py"
    keep_all = ("train.save_every = 13", "train.keep = [@checkpoint.KeepLatest()]", "checkpoint.KeepLatest.num = 99")

    plugin.write_text(PLUGIN.format(bad_step=-1000))
    healthy = verbs("train", *train_flags("poisoned.gin", "healthy", *keep_all))
    assert healthy.code == 0, healthy.err
    plugin.write_text(PLUGIN.format(bad_step=13))
    stopped = verbs("train", *train_flags("poisoned.gin", "run"))
    assert stopped.code == 1
    assert message in stopped.err
    assert "the state from before it is saved" in stopped.err
    assert "write them into run/config.gin too.\n" in stopped.err
    assert "Traceback" not in stopped.err
    assert checkpoints(verbs.directory / "run") == [13]
    assert same(arrays(verbs.directory / "run", 13), arrays(verbs.directory / "healthy", 13))

    plugin.write_text(PLUGIN.format(bad_step=-1000))
    done = verbs("train", *train_flags("poisoned.gin", "run"))
    assert "Going on from step 13 of run." in done.err
    assert same(arrays(verbs.directory / "run", 40), arrays(verbs.directory / "healthy", 40))


def test_an_update_that_ruins_the_state_stops_the_run_and_is_never_saved(verbs):
    (verbs.directory / "poisoned.gin").write_text(
        f"import plugin\ninclude '{TOKENIZER}'\ntraining.Learner.optimizer = @plugin.Optimizer()\n")
    plugin = verbs.directory / "plugin.py"
    for bad_step, before in ((13, [10]), (9, [])):  # seen by the next step's loss; by nothing before the save
        plugin.write_text(PLUGIN.format(bad_step=bad_step))
        done = verbs("train", *train_flags("poisoned.gin", f"run{bad_step}", "train.save_every = 10"))
        assert done.code == 1
        assert (f"Stopped: after {bad_step + 1} steps the state is not finite in "
                "params/tokenizer/decoder/tower/norm/bias_D, though losses and gradients were") in done.err
        assert checkpoints(verbs.directory / f"run{bad_step}") == before


def test_a_full_disk_ends_the_run_with_the_reason_and_the_checkpoint_before_is_whole(verbs, runs, arrays, same):
    run = runs / "tokenizer"
    before = arrays(run, 40)
    flags = train_flags(TOKENIZER, "runs/debug/tokenizer", "train.num_steps = 45")
    running = verbs.start("train", *flags, file_size=22_000)  # less than the largest array has
    running.wait_for("Once more in 5 s")
    running.signal(signal.SIGTERM)  # then it does not wait for minutes
    done = running.end()
    assert done.code == 1
    assert re.search(r"Stopped: checkpoint \S+/00000045 was not saved: File too large; checkpoint \S+/00000040 is "
                     r"whole, and the run resumes from it\. Arrays of 0\.6 MiB ", done.err)
    assert "Traceback" not in done.err
    assert checkpoints(run) == [20, 40]
    assert same(arrays(run, 40), before)
    assert verbs("train", *flags).code == 0
    assert checkpoints(run) == [40, 45]


def test_too_many_corrupt_images_stop_the_run_and_a_few_are_warned_of_and_counted(verbs, write_images):
    write_images(verbs.directory / "images", count=40, corrupt=2)
    bindings = ("data.Images.source = @data.ImageFolder", "data.ImageFolder.path = 'images'",
                "data.ImageFolder.validation_fraction = 0.25", "train.num_steps = 10", "train.batch_size = 8",
                "train.evaluators = []")
    done = verbs("train", *train_flags(TOKENIZER, "few", *bindings, "data.Images.max_corrupt_fraction = 0.2"))
    assert done.code == 0, done.err
    warned = re.findall(r"WARNING .*images/square/(\d+)\.png", done.err)
    assert 1 <= len(warned) == len(set(warned)) <= 2
    assert read_metrics(verbs.directory / "few")[-1]["data/num_skipped"] == len(warned)

    done = verbs("train", *train_flags(TOKENIZER, "many", *bindings, "data.Images.max_corrupt_fraction = 0.0"))
    assert done.code == 1
    assert "Traceback" not in done.err
    assert re.search(r"Stopped: .*corrupt", done.err)
