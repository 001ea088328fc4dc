"""Adafactor with an int8 first moment: the optimizer of ViT-VQGAN section 5.2.

The algorithm is that of Shazeer and Stern (2018), in the form that authors of ViT-VQGAN published in praxis
(`ShardedAdafactor`), but with T5X's row mean. docs/optimizers.md has the formulas and the choices.
"""
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vqim.contracts.optimizer import check_names
from vqim.optim import adafactor_cpu
from vqim.optim.adamw import one_minus_power
from vqim.optim.arguments import require, require_step_count
from vqim.optim.gradients import combine_norms
from vqim.optim.groups import Group, Treatment, assign
from vqim.optim.int8 import dequantise, expand, quantise, rounding_noise
from vqim.optim.layout import Layout, lay_out
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

    Slots for a parameter: `m_int8` and `m_scale`, or `m`; `v_row` and `v_col`, or `v`.

    On a CPU, matrices are updated by the kernel of `adafactor_cpu` where it can be built.
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
    ) -> None:
        """Checks and keeps the settings.

        Args:
          beta1: decay of the first moment, in [0, 1); unused without a first moment.
          first_moment: how it is stored: 'int8' with float32 scales, 'bfloat16', 'float32', or 'none' for no moment.
          rounding: how int8 values are rounded: 'nearest', or 'stochastic', which has no dead zone.
          rounding_seed: seed for stochastic rounding.
          decay: decay of the second moment: 'adam' uses beta2, 'power' uses decay_power.
          beta2: decay of the second moment for 'adam', in (0, 1).
          decay_power: exponent of the decay for 'power', positive.
          clip_threshold: the RMS above which an update is scaled down; None for no clipping.
          scale_by_parameter: whether the learning rate is relative to each parameter's RMS.
          weight_decay: weight decay of matrices and tables, scaled by the learning rate.
          groups: exceptions for parameters by name; they must cover every parameter exactly once.
          min_factored_size: the second moment is factored where the second largest dimension is at least this long.
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
        self._treatments: dict[str, Treatment] = {}
        self._layouts: dict[str, Layout] = {}
        self._slots: dict[str, list[str]] = {}

    def init_spec(self, params: Spec, untrained: Iterable[str] = ()) -> Spec:
        """The slots of each parameter; see `Optimizer.init_spec`."""
        self._treatments = assign(params, self.groups, self.weight_decay, untrained)
        self._layouts = lay_out(params, self.min_factored_size)
        slots = {name: self._first_moment_slots(layout) | _second_moment_slots(layout)
                 for name, layout in self._layouts.items()}
        self._slots = {name: list(leaves) for name, leaves in slots.items()}
        return {f"{slot}/{name}": leaf for name, leaves in slots.items() for slot, leaf in leaves.items()}

    def update(
        self, params: State, grads: State, slots: State, *, learning_rate: Tensor, step: Tensor, keep: Tensor,
    ) -> dict[str, Tensor]:
        """One update in place; see `Optimizer.update`."""
        check_names(self._layouts, params, grads)
        device = next(iter(params.values())).device
        t = step.to(torch.float32) + 1
        if self.decay == "adam":
            new_weight = (1 - self.beta2) / one_minus_power(self.beta2, t)  # 1 - b
        else:
            new_weight = t ** -self.decay_power
        # Scalars may be on the host. A copy that does not block waits for nothing that the device still has to do.
        new_weight = new_weight.to(device, non_blocking=True)
        rates = {name: learning_rate * treatment.learning_rate_multiplier
                 for name, treatment in self._treatments.items()}
        keys: dict[str, Tensor] = {}
        if self.rounding == "stochastic":
            seed = torch.full_like(step, self.rounding_seed)
            keys = {name: step_key(seed, step, name).to(device, non_blocking=True) for name in self._layouts}
        norms = []
        for name in self._layouts:
            arrays = params[name], grads[name], {slot: slots[f"{slot}/{name}"] for slot in self._slots[name]}
            if self._kernel_serves(name, params[name], grads[name]):
                norms.append(self._kernel_step(name, *arrays, rates[name], new_weight, keep))
            else:
                norms.append(self._step(name, *arrays, rates[name], new_weight, keep, keys.get(name)))
        return {"update_norm": torch.where(keep, combine_norms(norms), 0.0)}

    def _step(
        self, name: str, w: Tensor, g: Tensor, slots: State, rate: Tensor, new_weight: Tensor, keep: Tensor,
        key: Tensor | None,
    ) -> Tensor:
        """Updates one parameter `w` and its slots; returns the l2 norm of the decrease."""
        layout, weight_decay = self._layouts[name], self._treatments[name].weight_decay
        g = g.to(torch.float32)
        u = _divide_by_second_moment(g, layout, slots, new_weight, keep)
        size = rate
        if self.scale_by_parameter:
            size = size * _rms(w, layout.inner).clamp(min=_SMALLEST_PARAMETER_SCALE)
        if self.clip_threshold is not None:
            size = size / (_rms(u, layout.inner) / self.clip_threshold).clamp(min=1.0)
        m = u * ((1 - self.beta1) * size)
        if "m_int8" in slots:
            m = m + dequantise(slots["m_int8"], self.beta1 * slots["m_scale"], layout.shared)
            noise = None if key is None else rounding_noise(key, m.shape)
            levels, scale = quantise(m, layout.shared, noise)
            _write(slots["m_int8"], levels, keep)
            _write(slots["m_scale"], scale, keep)
        elif "m" in slots:
            m = m + slots["m"].to(torch.float32) * self.beta1
            _write(slots["m"], m, keep)
        decrease = m + w * (rate * weight_decay) if weight_decay else m
        w.sub_(torch.where(keep, decrease, 0.0))  # subtracting +0.0 keeps every bit, even of -0.0
        return torch.linalg.vector_norm(decrease)

    def _kernel_serves(self, name: str, w: Tensor, g: Tensor) -> bool:
        """Whether the C kernel can replace `_step`: for matrices on a CPU, with one int8 scale per row or column."""
        layout = self._layouts[name]
        return (layout.factored is not None and len(layout.inner) == 2 and len(layout.shared) == 1
                and self.rounding == "nearest" and self.first_moment != "bfloat16"
                and adafactor_cpu.serves(w, g) and adafactor_cpu.is_available())

    def _kernel_step(
        self, name: str, w: Tensor, g: Tensor, slots: State, rate: Tensor, new_weight: Tensor, keep: Tensor,
    ) -> Tensor:
        """`_step` with the C kernel. All scalars are on the host here, so reading them does not wait."""
        if not keep:
            return torch.zeros(())
        layout = self._layouts[name]
        moment = {slot: array for slot, array in slots.items() if slot.startswith("m")}
        return adafactor_cpu.step(
            w, g, moment, slots["v_row"], slots["v_col"], scale_per_row=layout.shared == layout.inner[-1:],
            scale_by_parameter=self.scale_by_parameter, beta1=self.beta1, new_weight=float(new_weight),
            learning_rate=float(rate), weight_decay=self._treatments[name].weight_decay,
            clip_threshold=self.clip_threshold)

    def _first_moment_slots(self, layout: Layout) -> dict[str, Leaf]:
        if self.first_moment == "none":
            return {}
        if self.first_moment == "int8" and layout.shared:
            return {"m_int8": layout.slot(dtype=torch.int8), "m_scale": layout.slot(without=layout.shared)}
        return {"m": layout.slot(dtype=torch.bfloat16 if self.first_moment == "bfloat16" else torch.float32)}


def _second_moment_slots(layout: Layout) -> dict[str, Leaf]:
    if layout.factored is None:
        return {"v": layout.slot()}
    row, column = layout.factored
    return {"v_row": layout.slot(without=[column]), "v_col": layout.slot(without=[row])}


def _divide_by_second_moment(g: Tensor, layout: Layout, slots: State, new_weight: Tensor, keep: Tensor) -> Tensor:
    """Updates the second moment of a float32 gradient; returns the gradient divided by its square root."""
    squared = g * g + _EPS
    if layout.factored is None:
        v = torch.lerp(slots["v"], squared, new_weight)
        _write(slots["v"], v, keep)
        return g * v.rsqrt()
    row, column = layout.factored
    v_row = torch.lerp(slots["v_row"], squared.mean(column), new_weight)
    v_col = torch.lerp(slots["v_col"], squared.mean(row), new_weight)
    _write(slots["v_row"], v_row, keep)
    _write(slots["v_col"], v_col, keep)
    # `row` comes before `column`, so it is the same dimension in v_row
    row_factor = (v_row / v_row.mean(row, keepdim=True)).rsqrt()
    return g * expand(row_factor, [column]) * expand(v_col.rsqrt(), [row])


def _write(old: Tensor, new: Tensor, keep: Tensor) -> None:
    """Replaces `old` by `new` where `keep` is True."""
    old.copy_(torch.where(keep, new.to(old.dtype), old))


def _rms(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Root mean square over `dims`, which remain as dimensions of size 1."""
    squared = x * x
    return (squared.mean(tuple(dims), keepdim=True) if dims else squared).sqrt()
