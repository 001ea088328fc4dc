"""Adafactor with an int8 first moment: the optimizer of ViT-VQGAN section 5.2.

The algorithm is Shazeer and Stern's (2018) in the form that authors of the paper published in praxis
(`ShardedAdafactor`), with the row mean taken as T5X does. docs/optimizers.md has the formulas and the choices.
"""
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vqim.optim.adamw import one_minus_power
from vqim.optim.arguments import require, require_step_count
from vqim.optim.gradients import combine_norms
from vqim.optim.groups import Group, Treatment, assign
from vqim.optim.int8 import dequantise, expand, rounding_noise, to_levels
from vqim.optim.layout import Layout, lay_out
from vqim.optim.optimizer import check_names
from vqim.state.leaf import Leaf, Spec, State
from vqim.state.random import step_key

FIRST_MOMENTS = ("int8", "bfloat16", "float32", "none")
_EPS = 1e-30  # added to squared gradients, so that a zero gradient gives a zero update
_SMALLEST_PARAMETER_SCALE = 1e-3


class Adafactor:
    """Adam with a factored second moment and a quantised first moment.

    With t = step + 1, learning rate a, and means, maxima and root mean squares (RMS) never across 'layers':

        G = g^2 + 1e-30
        R <- b R + (1 - b) mean of G along columns        C <- b C + (1 - b) mean of G along rows
        u = g / sqrt(R C^T / mean(R)), or g / sqrt(V) with V <- b V + (1 - b) G where not factored
        u <- u / max(1, RMS(u) / clip_threshold)
        s = a, or a max(RMS(w), 1e-3) with `scale_by_parameter`
        m <- beta1 m + (1 - beta1) s u                    the learning rate is inside; no bias correction
        w <- w - m - a weight_decay w                     m as computed, before it is rounded to be kept

    where b = beta2 (1 - beta2^(t-1)) / (1 - beta2^t) for the decay 'adam' and 1 - t^-decay_power for 'power'.

    Slots of a parameter: `m_int8` and `m_scale`, or `m`; `v_row` and `v_col`, or `v`.
    """

    def __init__(
        self,
        beta1: float = 0.9,
        first_moment: str = "int8",
        rounding: str = "nearest",
        rounding_seed: int = 0,
        decay: str = "adam",
        beta2: float = 0.96,
        decay_power: float = 0.8,
        clip_threshold: float | None = 1.0,
        scale_by_parameter: bool = False,
        weight_decay: float = 0.0,
        groups: Sequence[Group] = (Group(),),
        min_factored_size: int = 128,
        factor_rules: Mapping[str, tuple[str, ...]] | None = None,
        compiled: bool = False,
    ) -> None:
        """Checks and keeps the settings.

        Args:
          beta1: decay of the first moment, in [0, 1); unused where there is none.
          first_moment: how it is kept: 'int8' with float32 scales, 'bfloat16', 'float32', or 'none' for no moment.
          rounding: of int8: 'nearest', or 'stochastic', which has no dead zone.
          rounding_seed: of stochastic rounding's own random stream.
          decay: of the second moment: 'adam' uses beta2, 'power' uses decay_power.
          beta2: in (0, 1).
          decay_power: positive.
          clip_threshold: the RMS above which an update is scaled down; None never does.
          scale_by_parameter: whether the learning rate is relative to each parameter's RMS.
          weight_decay: of matrices and tables, scaled by the learning rate.
          groups: which parameters deviate, by name; they cover every parameter exactly once.
          min_factored_size: the second moment is factored where the second largest dimension is at least this long.
          factor_rules: exceptions by name: a regular expression gives the two axes to factor over, or () for none.
          compiled: whether to run the update through torch.compile; for the torch runtime, where eager arithmetic
            passes over memory once an operation.
        """
        require(0 <= beta1 < 1, "beta1", "in [0, 1)", beta1)
        require(first_moment in FIRST_MOMENTS, "first_moment", f"one of {FIRST_MOMENTS}", first_moment)
        require(rounding in ("nearest", "stochastic"), "rounding", "'nearest' or 'stochastic'", rounding)
        require(rounding == "nearest" or first_moment == "int8", "rounding", "'nearest' unless first_moment is 'int8'",
                rounding)
        require(decay in ("adam", "power"), "decay", "'adam' or 'power'", decay)
        require(0 < beta2 < 1, "beta2", "in (0, 1)", beta2)
        require(decay_power > 0, "decay_power", "positive", decay_power)
        require(clip_threshold is None or clip_threshold > 0, "clip_threshold", "None or positive", clip_threshold)
        require(weight_decay >= 0, "weight_decay", "non-negative", weight_decay)
        require_step_count("min_factored_size", min_factored_size, 1)
        self.beta1 = 0.0 if first_moment == "none" else beta1
        self.first_moment, self.rounding, self.rounding_seed = first_moment, rounding, rounding_seed
        self.decay, self.beta2, self.decay_power = decay, beta2, decay_power
        self.clip_threshold, self.scale_by_parameter = clip_threshold, scale_by_parameter
        self.weight_decay, self.groups = weight_decay, tuple(groups)
        self.min_factored_size = min_factored_size
        self.factor_rules = dict(factor_rules or {})
        self._treatments: dict[str, Treatment] = {}
        self._layouts: dict[str, Layout] = {}
        self._update_one = self._update_parameter
        if compiled:
            # Everything large is recomputed from the gradient and the int8 values rather than stored: the
            # step is as fast as memory is, and needs no temporary array of a parameter's size.
            self._update_one = torch.compile(self._update_parameter, dynamic=False, fullgraph=True, options={
                "realize_reads_threshold": 100, "realize_acc_reads_threshold": 100, "realize_opcount_threshold": 1000})

    def init_spec(self, params: Spec) -> Spec:
        """The slots of each parameter; see `Optimizer.init_spec`."""
        self._treatments = assign(params, self.groups, self.weight_decay)
        self._layouts = lay_out(params, self.min_factored_size, self.factor_rules)
        return {
            f"{slot}/{name}": leaf
            for name, layout in self._layouts.items()
            for slot, leaf in (self._first_moment_slots(layout) | _second_moment_slots(layout)).items()
        }

    def update(
        self, params: State, grads: State, slots: State, *, learning_rate: Tensor, step: Tensor, keep: Tensor,
    ) -> dict[str, Tensor]:
        """One update in place; see `Optimizer.update`."""
        check_names(self._layouts, params, grads)
        t = step.to(torch.float32) + 1
        if self.decay == "adam":
            new_weight = (1 - self.beta2) / one_minus_power(self.beta2, t)  # 1 - b
        else:
            new_weight = t ** -self.decay_power
        norms = []
        for name, layout in self._layouts.items():
            treatment = self._treatments[name]
            names = self._first_moment_slots(layout) | _second_moment_slots(layout)
            key = None
            if self.rounding == "stochastic" and "m_int8" in names:
                seed = torch.full_like(step, self.rounding_seed)
                key = step_key(seed, step, name)
            norms.append(self._update_one(
                params[name], grads[name], {slot: slots[f"{slot}/{name}"] for slot in names}, layout,
                treatment.weight_decay, learning_rate * treatment.learning_rate_multiplier, new_weight, key, keep))
        return {"update_norm": combine_norms(norms)}

    def _first_moment_slots(self, layout: Layout) -> dict[str, Leaf]:
        if self.first_moment == "none":
            return {}
        if self.first_moment == "int8" and layout.shared:
            return {"m_int8": layout.slot(dtype=torch.int8), "m_scale": layout.slot(without=layout.shared)}
        return {"m": layout.slot(dtype=torch.bfloat16 if self.first_moment == "bfloat16" else torch.float32)}

    def _update_parameter(
        self, w: Tensor, g: Tensor, slots: dict[str, Tensor], layout: Layout, weight_decay: float,
        rate: Tensor, new_weight: Tensor, key: Tensor | None, keep: Tensor,
    ) -> Tensor:
        """Updates one parameter and its slots; returns the l2 norms of parts of the change."""
        g = g.to(torch.float32)
        inner = layout.inner
        new, u = _precondition(g, slots, layout, new_weight)
        size = rate
        if self.scale_by_parameter:
            size = size * _rms(w, inner).clamp(min=_SMALLEST_PARAMETER_SCALE)
        if self.clip_threshold is not None:
            size = size / (_rms(u, inner) / self.clip_threshold).clamp(min=1.0)
        m = u * ((1 - self.beta1) * size)
        if "m_int8" in slots:
            m = self.beta1 * dequantise(slots["m_int8"], slots["m_scale"], layout.shared) + m
            noise = None if key is None else rounding_noise(key, m.shape)
            new["m_int8"], new["m_scale"] = to_levels(m, layout.shared, noise)
        elif "m" in slots:
            m = new["m"] = self.beta1 * slots["m"].to(torch.float32) + m
        decrease = m + w * (rate * weight_decay) if weight_decay else m
        norm = torch.linalg.vector_norm(decrease, dim=layout.shared or None)
        for slot, old in slots.items():
            # the choice is made in float32, which holds every int8 and bfloat16 exactly
            old.copy_(torch.where(keep, new[slot], old.to(torch.float32)))
        w.sub_(torch.where(keep, decrease, 0.0))  # subtracting +0.0 leaves every bit as it was, also that of -0.0
        return torch.where(keep, torch.linalg.vector_norm(norm), 0.0)


def _second_moment_slots(layout: Layout) -> dict[str, Leaf]:
    if layout.factored is None:
        return {"v": layout.slot()}
    row, column = layout.factored
    return {"v_row": layout.slot(without=[column]), "v_col": layout.slot(without=[row])}


def _precondition(
    g: Tensor, slots: dict[str, Tensor], layout: Layout, new_weight: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    """The new second moments, and the gradient divided by their root."""
    squared = g * g + _EPS
    if layout.factored is None:
        v = torch.lerp(slots["v"], squared, new_weight)
        return {"v": v}, g * v.rsqrt()
    row, column = layout.factored
    v_row = torch.lerp(slots["v_row"], squared.mean(column), new_weight)
    v_col = torch.lerp(slots["v_col"], squared.mean(row), new_weight)
    # `row` comes before `column`, so it has the same number in v_row
    row_factor = (v_row / v_row.mean(row, keepdim=True)).rsqrt()
    u = g * expand(row_factor, [column]) * expand(v_col.rsqrt(), [row])
    return {"v_row": v_row, "v_col": v_col}, u


def _rms(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Root mean square over `dims`, which stay as dimensions of size 1."""
    squared = x * x
    return (squared.mean(tuple(dims), keepdim=True) if dims else squared).sqrt()
