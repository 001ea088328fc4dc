"""What every training step is made of: gradients, over micro-batches or a whole batch, and a network's update."""
from collections.abc import Callable
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor
from torch.utils import _pytree as pytree

from vqim.contracts.optimizer import Optimizer
from vqim.optim.gradients import clip_by_global_norm, global_norm
from vqim.state import sections
from vqim.state.leaf import State, select
from vqim.state.random import fold_key

Means = TypeVar("Means")
Sums = TypeVar("Sums")


def gradients(loss: Tensor, leaves: State, *, retain_graph: bool = False) -> State:
    """The gradient of a scalar loss for each leaf; the graph is gone then, unless another loss needs it.

    They lie in memory in the order of their dimensions. Those of convolutions come otherwise, and kernels that go
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
    """Gradients, metrics and sums of a batch in the memory of a part of it.

    Args:
      compute: from a micro-batch, a random key and the micro-batch's number, two nested dicts: means over images, such
        as gradients and losses, which become the means of the micro-batches', and sums, which add up; both in float32.
        What is not a mean (a norm, R1 with batch statistics) becomes the mean of the micro-batches' own.
      batch: arrays of a whole batch, cut along the first axis. Rows alternate between micro-batches, so that those of
        one device stay there.
      key: of the step; each micro-batch has one of its own.
      num_micro_batches: 1 is `compute(batch, key, 0)`.
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
    state: State, network: str, grads: State, optimizer: Optimizer, *, learning_rate: Tensor, step: Tensor,
    keep: Tensor, max_gradient_norm: float | None = None,
) -> dict[str, Tensor]:
    """One update, in place, of those of `params/<network>` that have gradients, and of `optimizer/<network>`.

    Args:
      state: of the whole task.
      network: its name in the state.
      grads: of its parameters.
      optimizer: of the network.
      learning_rate, step: scalars for the optimizer.
      keep: bool scalar; where it is False nothing changes.
      max_gradient_norm: gradients are scaled down to this global norm; None leaves them.

    Returns:
      `gradient_norm`, before clipping, and what the optimizer shows.
    """
    if max_gradient_norm is None:
        norm = global_norm(grads.values())
    else:
        grads, norm = clip_by_global_norm(grads, max_gradient_norm)
    params = select(state, sections.params(network))
    shown = optimizer.update(
        {name: params[name] for name in grads}, grads, select(state, sections.optimizer(network)),
        learning_rate=learning_rate, step=step, keep=keep)
    return {"gradient_norm": norm, **shown}
