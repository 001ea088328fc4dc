"""States of tasks and training steps on the torch runtime, and an optimizer that shows the gradients."""
import torch

from vqim.contracts.context import Context
from vqim.runtime.torch import TorchRuntime
from vqim.training.state import start

RUNTIME = TorchRuntime()
CONTEXT = Context(RUNTIME.kernels)
"""float32 and evaluation."""


class Recorder:
    """An optimizer that keeps the gradients, step and rate it is given, and changes nothing."""

    def init_spec(self, params, untrained=()):
        return {}

    def update(self, params, grads, slots, *, learning_rate, step, keep):
        self.grads, self.step, self.rate = grads, step, learning_rate
        return {}


def make_state(task, seed=0):
    """Initial values."""
    return start(task.init_spec(), seed, RUNTIME).arrays


def make_noisy_state(task, prefix):
    """Initial values, with some noise on what begins with `prefix`: new blocks are the identity, new heads zero."""
    state, generator = make_state(task), torch.Generator().manual_seed(0)
    for name, array in state.items():
        if name.startswith(prefix):
            array += 0.3 * torch.randn(array.shape, generator=generator)
    return state


def run_step(task, state, batch, step=0, seed=0):
    """One update of `state`, in place; returns what is shown."""
    scalars = RUNTIME.scalars({**task.host_scalars(step), "step": step, "seed": seed})
    return task.train_step(state, batch, scalars, RUNTIME.kernels, task.objective.program(step))


def copy(state):
    """The state with arrays of its own."""
    return {name: array.clone() for name, array in state.items()}
