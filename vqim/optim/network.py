"""The end of every training step: one network's gradients, and its update."""
import torch
from torch import Tensor

from vqim.optim.gradients import clip_by_global_norm, global_norm
from vqim.optim.optimizer import Optimizer
from vqim.state.leaf import State, select


def trainable(state: State, network: str) -> State:
    """A network's parameters as leaves of a new autograd graph, which share the state's memory."""
    return {name: array.detach().requires_grad_() for name, array in select(state, f"params/{network}/").items()}


def gradients(loss: Tensor, leaves: State) -> State:
    """The gradient of a scalar loss for each leaf."""
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def update_network(
    state: State, network: str, grads: State, optimizer: Optimizer, scalars: dict[str, Tensor], keep: Tensor,
    max_gradient_norm: float | None = None,
) -> dict[str, Tensor]:
    """One update, in place, of `params/<network>` and `optimizer/<network>`.

    Args:
      state: of the whole task.
      network: its name in the state.
      grads: of its parameters.
      optimizer: of the network.
      scalars: with 'learning_rate' and 'step'.
      keep: bool scalar; where it is False nothing changes.
      max_gradient_norm: gradients are scaled down to this global norm; None leaves them.

    Returns:
      `gradient_norm`, before clipping, and what the optimizer shows.
    """
    if max_gradient_norm is None:
        norm = global_norm(grads.values())
    else:
        grads, norm = clip_by_global_norm(grads, max_gradient_norm)
    shown = optimizer.update(
        select(state, f"params/{network}/"), grads, select(state, f"optimizer/{network}/"),
        learning_rate=scalars["learning_rate"], step=scalars["step"], keep=keep)
    return {"gradient_norm": norm, **shown}
