"""Run by test_several_hosts.py: one of several processes that train together, each with a part of data and state.

    python -m tests.training.one_host index count port workdir num_steps fails_at [scores]

Its data fail when it loads the batch after step `fails_at`, 0 for never. Prints the port, which process 0 chooses if it
is given 0, and at the end JSON: step, interrupted, examples loaded.
"""
import itertools
import json
import sys

import numpy as np
import torch
from absl import logging

from tests.runtime.several_hosts import OneOfSeveral
from tests.training.sums import Score
from vqim.checkpoint.policy import KeepBest
from vqim.data.loader import Loader
from vqim.runtime.hosts import HostNetwork
from vqim.state.health import check_finite, health_spec
from vqim.state.init import Constant
from vqim.state.leaf import Leaf
from vqim.training.experiment import Experiment
from vqim.training.loop import train

NUM_EXAMPLES, BATCH_SIZE = 100, 6


class Counts:
    """A task, and its objective: counts how often each example has come."""

    checked = ["loss"]
    num_micro_batches = 1

    def __init__(self):
        self.objective = self

    def init_spec(self):
        return {"params/counts": Leaf((NUM_EXAMPLES,), Constant(0.0), ("in",)), **health_spec(self.checked)}

    def check_data(self, data):
        pass

    def check_batch(self, batch_size):
        pass

    def host_scalars(self, step):
        return {}

    def program(self, step):
        return "train"

    def train_step(self, state, batch, scalars, kernels, program="train"):
        loss = batch["records"].float().mean()
        check_finite(state, [loss], scalars["step"])
        counts = state["params/counts"]
        here = batch["records"][:, None] == torch.arange(NUM_EXAMPLES, device=counts.device)
        counts.add_(here.sum(0))
        return {"loss": loss}

    def describe(self):
        return {}


class Numbers:
    """Examples that are their own indices; reading fails from batch `fails_at` on."""

    image_size, class_names = 1, ()

    def __init__(self, fails_at=None):
        self._fails_at = fails_at

    def num_examples(self, split):
        return NUM_EXAMPLES

    def training(self, batch_size, seed, **processes):
        batches = itertools.count()

        def read(epochs_B, records_B):
            if self._fails_at and next(batches) == self._fails_at:
                raise OSError("the disk is gone")
            return {"records": records_B}

        return Loader(read, NUM_EXAMPLES, batch_size, seed, **processes)


class Scores(Score):
    """An evaluator that gives its scores in turn."""

    def begin(self, task, data, state, runtime):
        return self


def experiment(num_steps, fails_at=None, scores=()):
    """Counting. With scores, evaluations every 4 steps give these in turn, and the best step is kept."""
    return Experiment(
        Counts(), Numbers(fails_at), num_steps, BATCH_SIZE, log_every=10, save_every=10 if fails_at else 10**6,
        evaluators=[Scores(4, scores)] if scores else [], keep=[KeepBest("score", 1, "max")] if scores else [])


def main():
    """Trains as one process of several."""
    index, count, port = map(int, sys.argv[1:4])
    network = HostNetwork("localhost", port, index, count, timeout_seconds=300)
    print(network.port, flush=True)
    logging.set_verbosity(logging.INFO)
    runtime = OneOfSeveral(network)
    num_steps, fails_at, *scores = map(int, sys.argv[5:])
    finished = train(experiment(num_steps, fails_at, scores), workdir=sys.argv[4], runtime=runtime, config="")
    loaded = np.concatenate([batch["records"] for batch in runtime.loaded]).tolist()
    print(json.dumps({"step": finished.state.step, "interrupted": finished.interrupted, "loaded": loaded}))


if __name__ == "__main__":
    main()
