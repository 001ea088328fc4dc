"""Norms over many tensors, and clipping by them."""
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vqim.optim.arguments import require
from vqim.state.leaf import State


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The l2 norm of all elements in all tensors together, a float32 scalar; 0 for no tensors.

    It is not finite if an element is not finite, or if the sum of squares overflows float32 (norm above 1.8e19).
    """
    return combine_norms([torch.linalg.vector_norm(x, dtype=torch.float32) for x in tensors])


def combine_norms(norms: Sequence[Tensor]) -> Tensor:
    """The l2 norm of a whole, from the norms of its parts."""
    return torch.linalg.vector_norm(torch.stack(list(norms))) if norms else torch.zeros(())


def clip_by_global_norm(grads: State, max_norm: float) -> tuple[State, Tensor]:
    """Scales all gradients by min(1, max_norm / norm), where norm is their global norm (Pascanu et al., 2013).

    Nothing is read back. A norm that is not finite makes every clipped gradient NaN rather than zero, so that
    no later test for finite values can miss it; pass `keep = isfinite(norm)` to the optimizer.

    Returns:
      The gradients, and their float32 norm before clipping.
    """
    require(max_norm > 0, "max_norm", "positive", max_norm)
    norm = global_norm(grads.values())
    # inf - inf and NaN - NaN are NaN, everything finite gives 0
    scale = (max_norm / norm.clamp(min=max_norm)) + (norm - norm)
    return {name: grad * scale.to(grad.dtype) for name, grad in grads.items()}, norm
