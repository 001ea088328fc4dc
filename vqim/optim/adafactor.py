"""Adafactor with an int8 first moment: the optimizer of ViT-VQGAN section 5.2.

The algorithm is Shazeer and Stern's (2018) in the form that authors of the paper published in praxis
(`ShardedAdafactor`), with the row mean taken as T5X does. docs/optimizers.md has the formulas and the choices.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from vqim.optim.adamw import one_minus_power
from vqim.optim.arguments import require, require_step_count
from vqim.optim.gradients import combine_norms
from vqim.optim.groups import Group, Treatment, assign
from vqim.optim.int8 import dequantise, expand, rounding_noise, scale_of, to_levels
from vqim.optim.layout import Layout, lay_out
from vqim.optim.optimizer import check_names
from vqim.state.leaf import Leaf, Spec, State
from vqim.state.random import step_key

FIRST_MOMENTS = ("int8", "bfloat16", "float32", "none")
P = ParamSpec("P")
R = TypeVar("R")
Factors = dict[str, tuple[Tensor, ...]]  # what to multiply a gradient by: of rows and of columns, or of elements
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
        # Four passes over memory. Compiled apart, each reads the gradient and the int8 values afresh rather than an
        # array of a parameter's size that another pass would have to write.
        self._run_second_moments = self._second_moments
        self._run_step_sizes, self._run_ranges, self._run_apply = self._step_sizes, self._ranges, self._apply
        if compiled:
            self._run_second_moments, self._run_step_sizes = _compile(self._second_moments), _compile(self._step_sizes)
            self._run_ranges, self._run_apply = _compile(self._ranges), _compile(self._apply)

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
        rates = {name: learning_rate * treatment.learning_rate_multiplier
                 for name, treatment in self._treatments.items()}
        keys: dict[str, Tensor] = {}
        if self.rounding == "stochastic":
            seed = torch.full_like(step, self.rounding_seed)
            keys = {name: step_key(seed, step, name) for name in self._layouts}
        factors = self._run_second_moments(grads, slots, new_weight, keep)
        sizes = self._run_step_sizes(params, grads, factors, rates)
        scales, norm = self._run_ranges(params, grads, slots, factors, sizes, rates)
        self._run_apply(params, grads, slots, factors, sizes, rates, scales, keys, keep)
        return {"update_norm": torch.where(keep, norm, 0.0)}

    def _first_moment_slots(self, layout: Layout) -> dict[str, Leaf]:
        if self.first_moment == "none":
            return {}
        if self.first_moment == "int8" and layout.shared:
            return {"m_int8": layout.slot(dtype=torch.int8), "m_scale": layout.slot(without=layout.shared)}
        return {"m": layout.slot(dtype=torch.bfloat16 if self.first_moment == "bfloat16" else torch.float32)}

    def _second_moments(self, grads: State, slots: State, new_weight: Tensor, keep: Tensor) -> Factors:
        """Updates the second moments; returns what to multiply each gradient by."""
        factors: Factors = {}
        for name, layout in self._layouts.items():
            g = grads[name].to(torch.float32)
            squared = (g * g).add_(_EPS)
            if layout.factored is None:
                v = torch.lerp(slots[f"v/{name}"], squared, new_weight)
                factors[name] = (v.rsqrt(),)
                _write(slots[f"v/{name}"], v, keep)
                continue
            row, column = layout.factored
            v_row = torch.lerp(slots[f"v_row/{name}"], squared.mean(column), new_weight)
            v_col = torch.lerp(slots[f"v_col/{name}"], squared.mean(row), new_weight)
            # `row` comes before `column`, so it has the same number in v_row
            row_factor = (v_row / v_row.mean(row, keepdim=True)).rsqrt()
            factors[name] = (expand(row_factor, [column]), expand(v_col.rsqrt(), [row]))
            _write(slots[f"v_row/{name}"], v_row, keep)
            _write(slots[f"v_col/{name}"], v_col, keep)
        return factors

    def _step_sizes(self, params: State, grads: State, factors: Factors, rates: State) -> State:
        """The learning rate of each parameter (of each layer) after parameter scaling and update clipping."""
        sizes = {}
        for name, layout in self._layouts.items():
            size = rates[name]
            if self.scale_by_parameter:
                size = size * _rms(params[name], layout.inner).clamp(min=_SMALLEST_PARAMETER_SCALE)
            if self.clip_threshold is not None:
                rms = _rms(_product(grads[name], factors[name]), layout.inner)
                size = size / (rms / self.clip_threshold).clamp(min=1.0)
            sizes[name] = size
        return sizes

    def _ranges(
        self, params: State, grads: State, slots: State, factors: Factors, sizes: State, rates: State,
    ) -> tuple[State, Tensor]:
        """The scale of each quantised first moment, and the l2 norm of the whole update."""
        scales, norms = {}, []
        for name, layout in self._layouts.items():
            m = self._moment(name, grads, slots, factors, sizes)
            if f"m_int8/{name}" in slots:
                scales[name] = scale_of(m, layout.shared)
            parts = torch.linalg.vector_norm(self._decrease(name, m, params, rates), dim=layout.shared or None)
            norms.append(torch.linalg.vector_norm(parts))
        return scales, combine_norms(norms)

    def _apply(
        self, params: State, grads: State, slots: State, factors: Factors, sizes: State, rates: State,
        scales: State, keys: State, keep: Tensor,
    ) -> None:
        """Updates the parameters and first moments."""
        for name, layout in self._layouts.items():
            m = self._moment(name, grads, slots, factors, sizes)
            decrease = self._decrease(name, m, params, rates)
            if name in scales:
                noise = rounding_noise(keys[name], m.shape) if keys else None
                _write(slots[f"m_int8/{name}"], to_levels(m, scales[name], layout.shared, noise), keep)
                _write(slots[f"m_scale/{name}"], scales[name], keep)
            elif f"m/{name}" in slots:
                _write(slots[f"m/{name}"], m, keep)
            params[name].sub_(torch.where(keep, decrease, 0.0))  # subtracting +0.0 keeps every bit, also that of -0.0

    def _moment(self, name: str, grads: State, slots: State, factors: Factors, sizes: State) -> Tensor:
        """The new first moment, in units of the parameter."""
        first, *others = factors[name]
        m = _product(grads[name], (first * ((1 - self.beta1) * sizes[name]), *others))
        if f"m_int8/{name}" in slots:
            shared = self._layouts[name].shared
            return m.add_(dequantise(slots[f"m_int8/{name}"], self.beta1 * slots[f"m_scale/{name}"], shared))
        if f"m/{name}" in slots:
            return m.add_(slots[f"m/{name}"].to(torch.float32), alpha=self.beta1)
        return m

    def _decrease(self, name: str, m: Tensor, params: State, rates: State) -> Tensor:
        decay = self._treatments[name].weight_decay
        return m + params[name] * (rates[name] * decay) if decay else m


def _compile(function: Callable[P, R]) -> Callable[P, R]:
    """Compiles for fixed shapes, computing a cheap value again in each loop that needs it rather than storing it."""
    compiled: Callable[P, R] = torch.compile(function, dynamic=False, fullgraph=True, options={
        "realize_reads_threshold": 100, "realize_acc_reads_threshold": 100, "realize_opcount_threshold": 1000})
    return compiled


def _second_moment_slots(layout: Layout) -> dict[str, Leaf]:
    if layout.factored is None:
        return {"v": layout.slot()}
    row, column = layout.factored
    return {"v_row": layout.slot(without=[column]), "v_col": layout.slot(without=[row])}


def _product(g: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    """The gradient times its factors, a new array."""
    first, *others = factors
    product = g.to(torch.float32) * first
    for factor in others:
        product.mul_(factor)
    return product


def _write(old: Tensor, new: Tensor, keep: Tensor) -> None:
    """Replaces `old` where `keep`; chosen in float32, which holds every int8 and bfloat16 exactly."""
    old.copy_(torch.where(keep, new, old.to(torch.float32)))


def _rms(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Root mean square over `dims`, which stay as dimensions of size 1."""
    squared = x * x
    return (squared.mean(tuple(dims), keepdim=True) if dims else squared).sqrt()
