"""Exponential moving averages (EMA) of a network's parameters, which evaluation uses instead of the parameters.

If two networks are adversaries, each step undoes a part of the one before, and the average removes this (Yazici et al.,
2019). StyleGAN2 and MaskGIT's tokenizer, among others, are evaluated with such averages.
"""
import dataclasses

import torch
from torch import Tensor

from vqim.state import sections
from vqim.state.init import Constant
from vqim.state.leaf import Spec, State, prefixed, select

_FIRST_STEPS = 10


def ema_spec(network: str, params: Spec) -> Spec:
    """`ema/<network>/<name>` for each parameter; its learner's first step overwrites the zeros."""
    zeros = {name: dataclasses.replace(leaf, init=Constant(0.0)) for name, leaf in params.items()}
    return prefixed(sections.ema(network), zeros)


def ema_rate(ema_decay: float, step: int) -> float:
    """The share of the way that the average moves towards the parameters after update number `step`, from 0.

    1 at first, then 10 / (10 + step), so that the average forgets how training began, and 1 - `ema_decay` in the end.
    """
    return max(1 - ema_decay, _FIRST_STEPS / (_FIRST_STEPS + step))


def update_ema(state: State, network: str, rate: Tensor, keep: Tensor) -> None:
    """Moves `ema/<network>` towards `params/<network>`, in place.

    Args:
      state: the whole task's state, after the update.
      network: its name in the state.
      rate: the value of `ema_rate`, a scalar.
      keep: bool scalar; where it is False nothing changes.
    """
    params = select(state, sections.params(network))
    for name, average in select(state, sections.ema(network)).items():
        average.add_(torch.where(keep, rate * (params[name] - average), 0.0))
