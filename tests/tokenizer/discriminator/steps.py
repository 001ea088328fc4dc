"""Training steps of a tiny tokenizer and its adversary."""
import torch

from vqim.runtime.torch import TorchRuntime
from vqim.training.state import start

RUNTIME = TorchRuntime()


def make_state(task):
    """Initial values and some noise: a new transformer block is the identity."""
    state, generator = start(task.init_spec(), 0, RUNTIME).arrays, torch.Generator().manual_seed(0)
    for name, array in state.items():
        if name.startswith("params/tokenizer/"):
            array += 0.3 * torch.randn(array.shape, generator=generator)
    return state


def run_step(task, state, batch, step):
    scalars = RUNTIME.scalars({**task.host_scalars(step), "step": step, "seed": 0})
    return task.train_step(state, batch, scalars, RUNTIME.kernels, task.objective.program(step))


def copy(state):
    return {name: array.clone() for name, array in state.items()}


def part(state, prefix):
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
