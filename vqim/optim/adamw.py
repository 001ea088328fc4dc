"""Adam with decoupled weight decay (Kingma and Ba, 2014; Loshchilov and Hutter, 2017).

    P elements of a piece of a parameter
"""
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vqim.contracts.optimizer import check_names
from vqim.optim.arguments import require
from vqim.optim.gradients import combine_norms
from vqim.optim.groups import Group, Treatment, assign
from vqim.state.init import Constant
from vqim.state.leaf import Leaf, Spec, State

_PIECE = 2**18
"""Elements that a CPU's thread updates at a time: all passes over them but the first find them in its cache."""


class AdamW:
    """Adam with decoupled weight decay; the formulas and their order are those of `torch.optim.AdamW`.

    With t = step + 1 and learning rate a:

        m <- beta1 m + (1 - beta1) g            v <- beta2 v + (1 - beta2) g^2
        w <- w - a (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) - a weight_decay w

    Slots: `m/<parameter>` and `v/<parameter>`, float32, 8 bytes per parameter.
    """

    def __init__(
        self,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        groups: Sequence[Group] = (Group(),),
    ) -> None:
        """Checks and keeps the settings.

        Args:
          beta1: decay of the first moment, in [0, 1).
          beta2: decay of the second moment, in [0, 1).
          eps: added to the root of the second moment; positive.
          weight_decay: weight decay of matrices and tables, scaled by the learning rate.
          groups: exceptions for parameters by name; they must cover every parameter exactly once.
        """
        require(0 <= beta1 < 1, "beta1", "in [0, 1)", beta1)
        require(0 <= beta2 < 1, "beta2", "in [0, 1)", beta2)
        require(eps > 0, "eps", "positive", eps)
        require(weight_decay >= 0, "weight_decay", "non-negative", weight_decay)
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self.groups = tuple(groups)
        self._treatments: dict[str, Treatment] = {}

    def init_spec(self, params: Spec, untrained: Iterable[str] = ()) -> Spec:
        """Two float32 slots for each parameter, with its shape and axes; see `Optimizer.init_spec`."""
        self._treatments = assign(params, self.groups, self.weight_decay, untrained)
        return {
            f"{slot}/{name}": Leaf(leaf.shape, Constant(0.0), leaf.axes)
            for slot in ("m", "v") for name, leaf in params.items()
        }

    def update(
        self, params: State, grads: State, slots: State, *, learning_rate: Tensor, step: Tensor, keep: Tensor,
    ) -> dict[str, Tensor]:
        """One update in place; see `Optimizer.update`."""
        check_names(self._treatments, params, grads)
        device = next(iter(params.values())).device
        # Scalars may be on the host. A copy that does not block waits for nothing that the device still has to do.
        rate, t = (x.to(device, non_blocking=True) for x in (learning_rate, step.to(torch.float32) + 1))
        one_parameter = self._fused if device.type in ("cpu", "cuda") else self._written_out
        norms = [
            one_parameter(
                params[name], grads[name].to(torch.float32), slots[f"m/{name}"], slots[f"v/{name}"],
                rate * treatment.learning_rate_multiplier, treatment.weight_decay, t, keep)
            for name, treatment in self._treatments.items()]
        return {"update_norm": combine_norms(norms)}

    def _fused(
        self, w: Tensor, g: Tensor, m: Tensor, v: Tensor, rate: Tensor, weight_decay: float, t: Tensor, keep: Tensor,
    ) -> Tensor:
        """One update of one parameter, by the kernel behind `torch.optim.AdamW(fused=True)`; returns its norm.

        The kernel's own decay, w (1 - rate weight_decay), is lost where the factor rounds to 1 in float32. So the
        kernel computes only the decrease, with a negative rate and from zero. The decay is added to it before w rounds
        the sum. A gradient scaler uses `found_inf` to skip a step on the device; it is the opposite of `keep`.
        """
        size = max(1, w.numel()) if w.device.type == "cuda" else _PIECE * torch.get_num_threads()
        found_inf, decay, norms = 1 - keep.to(torch.float32), rate * weight_decay, []
        for w_P, g_P, m_P, v_P in zip(*(x.view(-1).split(size) for x in (w, g, m, v)), strict=True):
            decrease_P = torch.zeros_like(w_P)
            torch._fused_adamw_(
                [decrease_P], [g_P], [m_P], [v_P], [], [t], lr=-rate, beta1=self.beta1, beta2=self.beta2,
                weight_decay=0.0, eps=self.eps, amsgrad=False, maximize=False, found_inf=found_inf)
            if weight_decay:
                decrease_P.addcmul_(w_P, decay).masked_fill_(~keep, 0.0)
            w_P.sub_(decrease_P)  # subtracting +0.0 keeps every bit, even of -0.0
            norms.append(torch.linalg.vector_norm(decrease_P))
        return norms[0] if len(norms) == 1 else combine_norms(norms)

    def _written_out(
        self, w: Tensor, g: Tensor, m: Tensor, v: Tensor, rate: Tensor, weight_decay: float, t: Tensor, keep: Tensor,
    ) -> Tensor:
        """One update of one parameter in elementary operations, which XLA fuses; returns its norm."""
        new_m = m.lerp(g, 1 - self.beta1)
        new_v = (v * self.beta2).addcmul_(g, g, value=1 - self.beta2)
        root = new_v.sqrt().div_(one_minus_power(self.beta2, t).sqrt()).add_(self.eps)
        decrease = (new_m / root).mul_(rate / one_minus_power(self.beta1, t))
        if weight_decay:
            decrease.add_(w * (rate * weight_decay))
        decrease = torch.where(keep, decrease, 0.0)
        m.copy_(torch.where(keep, new_m, m))
        v.copy_(torch.where(keep, new_v, v))
        w.sub_(decrease)  # subtracting +0.0 keeps every bit, even of -0.0
        return torch.linalg.vector_norm(decrease)


def one_minus_power(base: float, exponent: Tensor) -> Tensor:
    """1 - base^exponent for a base in [0, 1), without the cancellation that float32 has near base = 1."""
    if base == 0:
        return torch.ones_like(exponent)
    return -torch.expm1(exponent * math.log(base))
