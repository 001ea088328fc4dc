"""Kills runs again and again, and compares how they end with runs that were never killed.

    python -m tests.faults.soak --kills=150 --workdir=runs/soak [--seed=0] [--scenarios=adversary,prior,second_phase]
    python -m tests.faults.soak --kills=50 --runtime=xla --workdir=runs/soak_xla

Three runs of gin/debug: stage 1 with an adversary and moving averages, stage 2 over its tokens, and a second phase that
trains its decoder further. Each saves every second step, keeps one checkpoint and evaluates on the way. kill -9 comes
a random time after the first step that a process has made, wherever the program then is: in a step, while it saves,
evaluates or removes an old checkpoint. After each kill the newest checkpoint is read, every byte of it. A run that
comes to its end in spite of the kills is compared with the one that was never killed, arrays and data positions, bit
for bit, and begins anew. Ends with code 1 if anything differs or cannot be read. Started again, it goes on from the
kills that it has made; `--minutes` ends it early.

On XLA the CPU is eight devices, and every start compiles anew: torch_xla's cache of compiled programs is written on a
CPU, but not read.
"""
import argparse
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import time

from tests.launch.verbs import Verbs, train_flags
from tests.support.processes import xla_environment
from vqim.checkpoint.errors import CheckpointError
from vqim.checkpoint.manager import CheckpointManager

STEP = r" step (\d+)/"
"""What a run logs after each step."""

NUM_STEPS = 24
COMMON = (f"NUM_STEPS = {NUM_STEPS}", "train.save_every = 2", "train.log_every = 1", "train.batch_size = 8",
          "train.keep = [@checkpoint.KeepLatest()]", "checkpoint.KeepLatest.num = 1")
ADVERSARY = (
    "tokenizer.TokenizerObjective.adversary = @tokenizer.Adversary()", "training.Learner.ema_decay = 0.9",
    "tokenizer.Adversary.discriminator = @tokenizer.StyleGAN2Discriminator()", "tokenizer.Adversary.start_step = 4",
    "tokenizer.Adversary.r1_every = 4", "tokenizer.Adversary.learner = @discriminator/training.Learner",
    "tokenizer.StyleGAN2Discriminator.image_size = 16", "tokenizer.StyleGAN2Discriminator.max_channels = 8",
    "evaluation.Reconstructions.every = 7")
PRIOR = ("TOKENIZER_RUN = 'adversary/whole'", "evaluation.Predictions.every = 7", "evaluation.Samples.every = 0",
         "evaluation.Samples.num_images = 1")
SECOND_PHASE = (
    "train.start_from = [@training.StartFrom()]", "training.StartFrom.run = 'adversary/whole'",
    "training.StartFrom.left = ['params/discriminator/.*']", "training.Learner.trains = 'decoder/.*'",
    "evaluation.Reconstructions.every = 7")
SCENARIOS = {"adversary": ("tokenizer_tiny", ADVERSARY), "prior": ("prior_tiny", PRIOR),
             "second_phase": ("tokenizer_tiny", SECOND_PHASE)}


class Soak:
    """Runs of one folder; what was done is in soak.jsonl, so that the next start of the program goes on from there."""

    def __init__(self, folder: pathlib.Path, runtime: str, seed: int):
        self._folder, self._runtime = folder, runtime
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self._record = folder / "soak.jsonl"
        lines = self._record.read_text().splitlines() if self._record.exists() else []
        self._done = [json.loads(line) for line in lines]
        self._random = random.Random(f"{seed} {len(self._done)}")
        if runtime == "xla":
            os.environ |= xla_environment(8)
        self._verbs = Verbs(folder, folder / "logs", seconds=1800)

    def count(self, what: str, scenario: str = "", where: str = "") -> int:
        """How often something was done, or was found to be `wrong`."""
        return sum(bool(row["wrong"] if what == "wrong" else row["what"] == what) and scenario in row["scenario"]
                   and where in row["where"] for row in self._done)

    def seconds(self, scenario: str) -> float | None:
        """The seconds that a third of a run takes which is not killed, all compiled; None if there is none yet."""
        return next((row["seconds"] for row in self._done
                     if row["what"] == "made" and row["scenario"] == scenario), None)

    def make(self, scenario: str) -> None:
        """Makes a run that is never killed."""
        shutil.rmtree(self._folder / scenario / "whole", ignore_errors=True)
        running = self._start(scenario, "whole")
        running.wait_for(f" step {NUM_STEPS * 2 // 3}/")
        begin = time.monotonic()
        self._end(running)
        self._note("made", scenario, seconds=time.monotonic() - begin)

    def kill(self, scenario: str) -> None:
        """Starts the run that is killed, and kills it within the time of a third of a run after its first step."""
        folder = self._folder / scenario / "killed"
        running = self._start(scenario, "killed")
        while running.is_alive() and not running.has_logged(STEP):  # killed in its last evaluation, it has none left
            time.sleep(0.005)
        time.sleep(self._random.uniform(0.0, self.seconds(scenario)))
        if running.is_alive():
            running.signal(signal.SIGKILL)
        done = running.end()
        if done.code == 0:
            self._compare(scenario)
            return
        assert done.code == -signal.SIGKILL, done.err
        where = re.findall(STEP, done.err)[-1]
        saving = " saving" if any((folder / "checkpoints").glob("*.tmp")) else ""
        self._note("killed", scenario, f"after step {where}{saving}", self._unreadable(folder))

    def compare(self, scenario: str) -> None:
        """Lets the killed run come to its end, if there is one, and compares it."""
        if (self._folder / scenario / "killed").exists():
            self._end(self._start(scenario, "killed"))
            self._compare(scenario)

    def _compare(self, scenario: str) -> None:
        self._note("compared", scenario, wrong=self._differences(scenario))
        shutil.rmtree(self._folder / scenario / "killed")

    def _note(self, what: str, scenario: str, where: str = "", wrong: list[str] = (), seconds: float = 0.0) -> None:
        row = {"what": what, "scenario": scenario, "where": where, "wrong": list(wrong), "seconds": seconds}
        self._done.append(row)
        with self._record.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{self.count('killed'):4} {scenario} {what} {where} {', '.join(wrong[:8])}", flush=True)

    def _differences(self, scenario: str) -> list[str]:
        """The names of arrays that differ from those of the run that was never killed, and more."""
        whole, killed = (CheckpointManager(self._folder / scenario / name / "checkpoints").open(NUM_STEPS)
                         for name in ("whole", "killed"))
        differing = [name for name in sorted({*whole.names(), *killed.names()})
                     if name not in whole.names() or name not in killed.names()
                     or whole.read(name).tobytes() != killed.read(name).tobytes()]
        if whole.data_position() != killed.data_position():
            differing.append("data position")
        return differing + killed.verify()

    def _unreadable(self, run: pathlib.Path) -> list[str]:
        """What is damaged in a run's newest checkpoint, if there is one."""
        manager = CheckpointManager(run / "checkpoints")
        try:
            return [] if manager.latest_step() is None else manager.open().verify()
        except CheckpointError as error:
            return [str(error)]

    def _start(self, scenario: str, name: str):
        file, bindings = SCENARIOS[scenario]
        return self._verbs.start("train", *train_flags(f"gin/debug/{file}.gin", f"{scenario}/{name}", *COMMON,
                                                       *bindings), runtime=self._runtime)

    def _end(self, running) -> None:
        done = running.end()
        if done.code:
            sys.exit(f"a run that was not killed ended with code {done.code}:\n{done.err}")


def main() -> None:
    """Kills as often as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--runtime", choices=("torch", "xla"), default="torch")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--minutes", type=float, default=600.0)
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    soak = Soak(arguments.workdir.resolve(), arguments.runtime, arguments.seed)
    scenarios = arguments.scenarios.split(",")
    while soak.count("killed") < arguments.kills and time.monotonic() < end:
        scenario = min(scenarios, key=lambda scenario: soak.count("killed", scenario))
        # The others begin from the first one's end, so it is needed even where it is not killed itself.
        if needed := [name for name in ("adversary", scenario) if not soak.seconds(name)]:
            soak.make(needed[0])
        else:
            soak.kill(scenario)
    if soak.count("killed") >= arguments.kills:
        for scenario in scenarios:
            soak.compare(scenario)
    for scenario in scenarios:
        print(f"{scenario}: {soak.count('killed', scenario)} kills, {soak.count('compared', scenario)} ends compared")
    print(f"{soak.count('killed')} kills, {soak.count('killed', where='saving')} of them while a checkpoint was being "
          f"written or removed; {soak.count('wrong')} times something was wrong")
    sys.exit(bool(soak.count("wrong")))


if __name__ == "__main__":
    main()
