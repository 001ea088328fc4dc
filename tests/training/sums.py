"""A task of one number, whose updates are known, with its data and an evaluator."""
import numpy as np
import torch

from vqim.state.health import check_finite, health_spec
from vqim.state.init import Constant
from vqim.state.leaf import Leaf


class Sum:
    """A task, and its objective: adds up what the data say; the loss is what was added."""

    checked = ["loss"]
    num_micro_batches = 1

    def __init__(self):
        self.objective = self

    def init_spec(self):
        return {"params/sum": Leaf((), Constant(0.0)), **health_spec(self.checked)}

    def check_data(self, data):
        pass

    def check_batch(self, batch_size):
        pass

    def host_scalars(self, step):
        return {"learning_rate": 1.0}

    def program(self, step):
        return "train"

    def train_step(self, state, batch, scalars, kernels, program):
        loss = batch["values"].sum()
        keep = check_finite(state, [loss], scalars["step"])
        state["params/sum"].add_(torch.where(keep, loss, 0.0))
        return {"loss": loss}

    def describe(self):
        return {"sum": 1}


class Values:
    """1, 2, 3, ... and infinity where it is asked for; calls `watch` with each."""

    num_skipped, image_size, class_names = 0, 1, ()

    def __init__(self, bad=None, watch=lambda value: None):
        self.bad, self.watch, self.next = bad, watch, 1

    def num_examples(self, split):
        return 1

    def training(self, batch_size, seed, **processes):
        self.next = 1
        return self

    def __next__(self):
        value, self.next = self.next, self.next + 1
        self.watch(value)
        return {"values": np.array([np.inf if value == self.bad else value], np.float32)}

    def position(self):
        return {"next": self.next}

    def restore(self, position):
        self.next = position["next"]

    def close(self):
        pass


class Score:
    """An evaluator, and its evaluation: goes through three batches and calls `watch`, then gives the next score."""

    def __init__(self, every, scores, watch=lambda batch: None, name="score"):
        self.every, self.scores, self.watch, self.name, self.sums = every, list(scores), watch, name, []

    def begin(self, task, data, state, runtime):
        self.sums.append(float(state["params/sum"]))
        return self

    def __iter__(self):
        for batch in range(3):
            self.watch(batch)
            yield

    def result(self):
        return {self.name: self.scores.pop(0)}
