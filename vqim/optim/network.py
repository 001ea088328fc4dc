"""The parts of every training step: gradients, over micro-batches or a whole batch, and a network's update."""
from collections.abc import Callable
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor
from torch.utils import _pytree as pytree

from vqim.contracts.optimizer import Optimizer
from vqim.optim.gradients import clip_by_global_norm
from vqim.state import sections
from vqim.state.leaf import State, select
from vqim.state.random import fold_key

Means = TypeVar("Means")
Sums = TypeVar("Sums")


def gradients(loss: Tensor, leaves: State, *, retain_graph: bool = False) -> State:
    """The gradient of a scalar loss for each leaf; frees the graph unless `retain_graph`.

    The gradients are contiguous. Autograd gives those of convolutions in another memory order, and kernels that go
    through memory (`torch._fused_adamw_`) would add them to the wrong elements.

    Raises:
      ValueError: the loss does not depend on some of the leaves.
    """
    grads = torch.autograd.grad(loss, list(leaves.values()), retain_graph=retain_graph, allow_unused=True)
    unreached = [name for name, grad in zip(leaves, grads, strict=True) if grad is None]
    if unreached:
        more = f" and {len(unreached) - 5} more" if len(unreached) > 5 else ""
        raise ValueError(f"trains must leave out what no loss reaches, or it would never move: no loss depends on "
                         f"{', '.join(unreached[:5])}{more}")
    return {name: grad.contiguous() for name, grad in zip(leaves, grads, strict=True)}


def accumulate(
    compute: Callable[[dict[str, Tensor], Tensor, int], tuple[Means, Sums]], batch: dict[str, Tensor], key: Tensor,
    num_micro_batches: int,
) -> tuple[Means, Sums]:
    """Gradients, metrics and sums of a batch, with the memory for only a part of it.

    Args:
      compute: returns two nested float32 dicts from a micro-batch, a random key and the micro-batch's index. The first
        has means over images, such as gradients and losses, which are averaged over micro-batches; the second has sums,
        which are added. Values that are not means (a norm, R1 with batch statistics) are averaged too.
      batch: the arrays of a whole batch, cut along the first axis. Rows alternate between micro-batches, so that rows
        on a device stay there.
      key: the step's key, from which each micro-batch gets its own.
      num_micro_batches: the number of micro-batches; 1 is `compute(batch, key, 0)`.
    """
    if num_micro_batches == 1:
        return compute(batch, key, 0)
    parts = {name: rearrange(array, "(b m) ... -> m b ...", m=num_micro_batches) for name, array in batch.items()}
    total = None
    for number in range(num_micro_batches):
        computed = compute({name: array[number] for name, array in parts.items()}, fold_key(key, number), number)
        total = computed if total is None else pytree.tree_map(lambda x, y: x.float() + y, total, computed)
    assert total is not None
    means, sums = total
    return pytree.tree_map(lambda x: x / num_micro_batches, means), sums


def update_network(
    state: State, network: str, grads: State, optimizer: Optimizer, *, gradient_norm: Tensor,
    learning_rate: Tensor, step: Tensor, keep: Tensor, max_gradient_norm: float | None = None,
) -> dict[str, Tensor]:
    """Updates, in place, those of `params/<network>` that have gradients, and `optimizer/<network>`.

    Args:
      state: the whole task's state.
      network: the network's name in the state.
      grads: the gradients of its parameters.
      optimizer: its optimizer.
      gradient_norm: the global norm of all of `grads`.
      learning_rate: a scalar for the optimizer.
      step: a scalar for the optimizer.
      keep: bool scalar; where it is False nothing changes.
      max_gradient_norm: gradients are scaled down to this global norm; None leaves them.

    Returns:
      The optimizer's metrics.
    """
    if max_gradient_norm is not None:
        grads = clip_by_global_norm(grads, gradient_norm, max_gradient_norm)
    params = select(state, sections.params(network))
    return optimizer.update(
        {name: params[name] for name in grads}, grads, select(state, sections.optimizer(network)),
        learning_rate=learning_rate, step=step, keep=keep)
