"""Norms over many tensors, and clipping by them."""
from collections.abc import Sequence

import torch
from torch import Tensor

from vqim.optim.arguments import require
from vqim.state.leaf import State


def tensor_norm(x: Tensor) -> Tensor:
    """The l2 norm of all elements, a float32 scalar.

    It is not finite if an element is not finite, or if the sum of squares overflows float32 (norm above 1.8e19).
    """
    return torch.linalg.vector_norm(x, dtype=torch.float32)


def combine_norms(norms: Sequence[Tensor]) -> Tensor:
    """The l2 norm of a whole, from the norms of its parts; 0 for no parts."""
    return torch.linalg.vector_norm(torch.stack(list(norms))) if norms else torch.zeros(())


def clip_by_global_norm(grads: State, norm: Tensor, max_norm: float) -> State:
    """Scales all gradients by min(1, max_norm / norm), where norm is their global norm (Pascanu et al., 2013).

    Nothing is read back. A norm that is not finite makes every clipped gradient NaN rather than zero, so that
    no later test for finite values can miss it; pass `keep = isfinite(norm)` to the optimizer.
    """
    require(max_norm > 0, "max_norm", "positive", max_norm)
    # inf - inf and NaN - NaN are NaN, everything finite gives 0
    scale = (max_norm / norm.clamp(min=max_norm)) + (norm - norm)
    return {name: grad * scale.to(grad.dtype) for name, grad in grads.items()}
