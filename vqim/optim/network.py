"""What every training step is made of: gradients, over micro-batches or a whole batch, and a network's update."""
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.utils import _pytree as pytree

from vqim.optim.gradients import clip_by_global_norm, global_norm
from vqim.optim.optimizer import Optimizer
from vqim.state.leaf import State, select
from vqim.state.random import fold_key


def trainable(state: State, network: str) -> State:
    """A network's parameters as leaves of a new autograd graph, which share the state's memory."""
    return {name: array.detach().requires_grad_() for name, array in select(state, f"params/{network}/").items()}


def gradients(loss: Tensor, leaves: State, *, retain_graph: bool = False) -> State:
    """The gradient of a scalar loss for each leaf; the graph is gone then, unless another loss needs it.

    They lie in memory in the order of their dimensions. Those of convolutions come otherwise, and kernels that go
    through memory (`torch._fused_adamw_`) would add them to the wrong elements.
    """
    grads = torch.autograd.grad(loss, list(leaves.values()), retain_graph=retain_graph)
    return {name: grad.contiguous() for name, grad in zip(leaves, grads, strict=True)}


def accumulate(
    compute: Callable[[dict[str, Tensor], Tensor], Any], batch: dict[str, Tensor], key: Tensor, num_micro_batches: int,
) -> Any:
    """Gradients and metrics of a batch in the memory of a part of it: means, in float32, over its micro-batches.

    Args:
      compute: of a micro-batch and a random key, a nested dict of means over pictures: gradients, losses. What is not
        a mean (a norm, R1 with batch statistics) becomes the mean of the micro-batches' own.
      batch: arrays of a whole batch, cut along the first axis. Rows alternate between micro-batches, so that those of
        one device stay there.
      key: of the step; each micro-batch has one of its own.
      num_micro_batches: 1 is `compute(batch, key)`.
    """
    if num_micro_batches == 1:
        return compute(batch, key)
    parts = {name: rearrange(array, "(b m) ... -> m b ...", m=num_micro_batches) for name, array in batch.items()}
    total = None
    for number in range(num_micro_batches):
        computed = compute({name: array[number] for name, array in parts.items()}, fold_key(key, number))
        total = computed if total is None else pytree.tree_map(lambda x, y: x.float() + y, total, computed)
    return pytree.tree_map(lambda x: x / num_micro_batches, total)


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
