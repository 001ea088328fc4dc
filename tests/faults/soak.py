"""Kills runs again and again, and compares how they end with runs that were never killed.

    python -m tests.faults.soak --kills=60 --workdir=runs/soak [--seed=0] [--scenarios=adversary,prior,second_phase]

Three runs of gin/debug: stage 1 with an adversary and moving averages, stage 2 over its tokens, and a second phase that
trains its decoder further. Each saves every second step, keeps one checkpoint and evaluates on the way. kill -9 comes
after a random time, wherever the program then is: before the first step, in a step, while it saves, evaluates or
removes an old checkpoint. Prints a line a kill, and at the end whether all arrays and data positions are equal bit for
bit; ends with code 1 if not.
"""
import argparse
import pathlib
import random
import re
import shutil
import signal
import sys
import time

from tests.launch.verbs import Verbs, train_flags
from vqim.checkpoint.manager import CheckpointManager

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
    """Runs of one folder."""

    def __init__(self, folder: pathlib.Path, seed: int):
        self._folder, self._random = folder, random.Random(seed)
        (folder / "logs").mkdir(parents=True)
        self._verbs = Verbs(folder, folder / "logs")

    def whole(self, scenario: str) -> float:
        """Makes a run that is never killed; returns the seconds that it took."""
        begin = time.monotonic()
        self._end(self._start(scenario, "whole"))
        return time.monotonic() - begin

    def kill(self, scenario: str, seconds: float) -> str:
        """Starts the run that is killed, and kills it after a random time below `seconds`; returns where it was."""
        running = self._start(scenario, "killed")
        time.sleep(self._random.uniform(0.0, seconds))
        if not running._process.is_alive():
            self._end(running)
            shutil.rmtree(self._folder / scenario / "killed")  # it has come to its end: once more from the beginning
            return "ended"
        running.signal(signal.SIGKILL)
        done = running.end()
        assert done.code == -signal.SIGKILL, done.err
        steps = re.findall(r" step (\d+)", done.err)
        return f"step {steps[-1]}" if steps else "before its first step"

    def differences(self, scenario: str) -> list[str]:
        """Lets the killed run come to its end; returns the names of arrays that differ from the other's, and more."""
        self._end(self._start(scenario, "killed"))
        whole, killed = (CheckpointManager(self._folder / scenario / name / "checkpoints").open(NUM_STEPS)
                         for name in ("whole", "killed"))
        differing = [name for name in sorted({*whole.names(), *killed.names()})
                     if name not in whole.names() or name not in killed.names()
                     or whole.read(name).tobytes() != killed.read(name).tobytes()]
        if whole.data_position() != killed.data_position():
            differing.append("data position")
        return differing + killed.verify()

    def _start(self, scenario: str, name: str):
        file, bindings = SCENARIOS[scenario]
        return self._verbs.start("train", *train_flags(f"gin/debug/{file}.gin", f"{scenario}/{name}", *COMMON,
                                                       *bindings))

    def _end(self, running) -> None:
        done = running.end()
        if done.code:
            sys.exit(f"a run that was not killed ended with code {done.code}:\n{done.err}")


def main() -> None:
    """Kills as often as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    arguments = parser.parse_args()
    soak = Soak(arguments.workdir.resolve(), arguments.seed)
    scenarios = arguments.scenarios.split(",")
    # The others begin from the first one's end, so it is needed even where it is not killed itself.
    seconds = {scenario: soak.whole(scenario) for scenario in dict.fromkeys(["adversary", *scenarios])}
    kills = dict.fromkeys(scenarios, 0)
    while sum(kills.values()) < arguments.kills:
        scenario = min(kills, key=kills.get)
        where = soak.kill(scenario, seconds[scenario])
        kills[scenario] += where != "ended"
        seconds[scenario] *= 0.7 if where == "ended" else 1.0  # the machine is less busy than it was
        print(f"{sum(kills.values()):4} {scenario}: {where}", flush=True)
    failed = False
    for scenario, count in kills.items():
        differing = soak.differences(scenario)
        failed |= bool(differing)
        print(f"{scenario}: {count} kills, " + (f"differs in {', '.join(differing[:8])}" if differing else
                                                "equal bit for bit"), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
