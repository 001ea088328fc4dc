"""Non-finite values never enter a state: the step that meets one changes nothing, and so does every later step.

The flags live in the state, on the device, so that no step has to read them back. The training loop fetches them
with the metrics, names the step and the tensors, and saves what was there before.
"""
import torch
from torch import Tensor

from vqim.state.init import Constant
from vqim.state.leaf import Leaf, Spec, State

FIRST_BAD_STEP = "health/first_bad_step"
IS_BAD = "health/is_bad"


def health_spec(names: list[str]) -> Spec:
    """The flags of a task that checks these tensors in each step, in this order."""
    return {
        FIRST_BAD_STEP: Leaf((), Constant(-1), (), torch.int32),
        IS_BAD: Leaf((len(names),), Constant(0), ("checked",), torch.int32),
    }


def check_finite(state: State, checked: list[Tensor], step: Tensor) -> Tensor:
    """Whether this step may change the state: a bool scalar, False from the first non-finite value on.

    Args:
      state: a state with the flags of `health_spec`, which are updated in place.
      checked: the tensors, in the order of the names. A tensor whose sum of squares overflows float32
        (norm above 1.8e19) counts as not finite.
      step: int32 scalar, the number of this update.
    """
    norms = torch.stack([torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32) for tensor in checked])
    is_bad = ~torch.isfinite(norms)
    first, flags = state[FIRST_BAD_STEP], state[IS_BAD]
    was_healthy = first < 0
    newly_bad = was_healthy & is_bad.any()
    flags.copy_(torch.where(newly_bad, is_bad.to(torch.int32), flags))
    first.copy_(torch.where(newly_bad, step.to(first.device, torch.int32, non_blocking=True), first))
    return was_healthy & ~newly_bad
