"""The only task: it updates an objective's learners with the gradients of its losses, all in the same step.

It gives every objective micro-batches, gradient clipping, moving averages, parts that are not trained, several
networks that learn from one forward pass, and checks for values that are not finite.
"""
import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from vqim.contracts.context import Context, Kernels
from vqim.contracts.learning import Computed, Learner, Objective
from vqim.nn.module import arrays_spec, spec, statistics_spec
from vqim.optim.ema import ema_rate, ema_spec, update_ema
from vqim.optim.gradients import combine_norms, tensor_norm
from vqim.optim.network import accumulate, gradients, update_network
from vqim.state import sections
from vqim.state.health import check_finite, health_spec
from vqim.state.leaf import Spec, State, prefixed
from vqim.state.random import step_key

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class GradientTask:
    """Trains an objective's learners. The first learner's metrics have no prefix, those of others have its name.

    Args:
      objective: what is to be learnt, and which networks learn it.
      num_micro_batches: the number of parts into which each step cuts its batch, to need less memory. A loss that
        combines several images, for example in batch statistics, then combines those in one part.
      dtype: the dtype in which it computes, 'float32' or 'bfloat16'; parameters are always float32. A prior is also
        measured and drawn from in it.
      evaluation_dtype: the dtype in which tokenizers encode and decode, and a classifier's run classifies, where they
        are not trained: evaluation, the tokens and images of a prior, `launch.cache_tokens`, `vqim.load`. Networks that
        measure, such as those of LPIPS and FID and a judge of samples, compute in float32.

    Raises:
      ValueError: an argument is out of its range, or a learner trains nothing.
    """

    def __init__(
        self, objective: Objective, num_micro_batches: int = 1, dtype: Literal["float32", "bfloat16"] = "float32",
        evaluation_dtype: Literal["float32", "bfloat16"] = "float32",
    ):
        if num_micro_batches < 1:
            raise ValueError(f"num_micro_batches must be at least 1, got {num_micro_batches}")
        for name, value in (("dtype", dtype), ("evaluation_dtype", evaluation_dtype)):
            if value not in DTYPES:
                raise ValueError(f"{name} must be {' or '.join(DTYPES)}, got {value!r}")
        self.objective, self.num_micro_batches = objective, num_micro_batches
        self.dtype, self.evaluation_dtype = DTYPES[dtype], DTYPES[evaluation_dtype]
        self._learners = objective.learners()
        self._main = self._learners[0].name
        self._params = {learner.name: spec(learner.module) for learner in self._learners}
        self._trained = {learner.name: _trained(learner, self._params[learner.name]) for learner in self._learners}
        # Arrays that `trains` leaves out do not change in `advance` either.
        self._still = {f"{section(learner.name)}{name}" for learner in self._learners
                       for section in (sections.params, sections.ema, sections.statistics)
                       for name in arrays_spec(learner.module) if not re.fullmatch(learner.trains, name)}
        self.checked = [name for learner in self._learners
                        for name in (self._shown(learner.name, "loss"),
                                     *(self._shown(learner.name, name) for name in self._trained[learner.name]))]

    def init_spec(self) -> Spec:
        """Each learner's parameters, averages, slots and statistics; frozen networks; health flags."""
        found: Spec = {}
        for learner in self._learners:
            name, params, trained = learner.name, self._params[learner.name], self._trained[learner.name]
            untrained = [param for param in params if param not in trained]
            found |= prefixed(sections.params(name), params)
            found |= ema_spec(name, trained) if learner.ema_decay is not None else {}
            found |= prefixed(sections.optimizer(name), learner.optimizer.init_spec(trained, untrained))
            found |= prefixed(sections.statistics(name), statistics_spec(learner.module))
        found |= prefixed("statistics/", self.objective.statistics())
        for name, network in self.objective.frozen.items():
            found |= prefixed(sections.frozen(name), network.init_spec())
        return {**found, **health_spec(self.checked)}

    def host_scalars(self, step: int) -> dict[str, float]:
        """The objective's numbers, and each learner's learning rate and the rate of its moving average."""
        scalars = dict(self.objective.host_scalars(step))
        for learner in self._learners:
            suffix = "" if learner.name == self._main else f"/{learner.name}"
            scalars[f"learning_rate{suffix}"] = learner.learning_rate(step)
            if learner.ema_decay is not None:
                scalars[f"ema_rate{suffix}"] = ema_rate(learner.ema_decay, max(step - learner.start_step, 0))
        return scalars

    def train_step(
        self, state: State, batch: dict[str, Tensor], scalars: dict[str, Tensor], kernels: Kernels,
        program: str = "train",
    ) -> dict[str, Tensor]:
        """One update of `state` in place; see `vqim.contracts.task.Task`."""
        learners = self.objective.learners(program)
        leaves = {learner.name: self._leaves(state, learner) for learner in learners}
        key = step_key(scalars["seed"], scalars["step"], self.objective.name)

        def compute(part: dict[str, Tensor], part_key: Tensor, number: int) -> tuple[dict[str, State], State]:
            context = Context(kernels, self.dtype, part_key, scalars, key, (number, self.num_micro_batches),
                              evaluation_dtype=self.evaluation_dtype)
            return self._differentiate(learners, leaves, state, part, context, program)

        # 1. Losses and gradients.
        means, sums = accumulate(compute, batch, key, self.num_micro_batches)
        losses, metrics = means["losses"], dict(means["metrics"])
        # 2. Check that everything is finite. Otherwise nothing below changes the state.
        norms = {learner.name: {name: tensor_norm(grad) for name, grad in means[f"gradients/{learner.name}"].items()}
                 for learner in learners}
        keep = check_finite(state, self._values_to_check(learners, means["losses"], norms), scalars["step"])
        # 3. Update parameters and their averages.
        for learner in learners:
            suffix = "" if learner.name == self._main else f"/{learner.name}"
            norm = combine_norms(list(norms[learner.name].values()))
            shown = update_network(
                state, learner.name, means[f"gradients/{learner.name}"], learner.optimizer, gradient_norm=norm,
                learning_rate=scalars[f"learning_rate{suffix}"], step=scalars["step"] - learner.start_step, keep=keep,
                max_gradient_norm=learner.max_gradient_norm)
            metrics |= {self._shown(learner.name, name): value
                        for name, value in {"gradient_norm": norm, **shown}.items()}
            if learner.ema_decay is not None:
                update_ema(state, learner.name, scalars[f"ema_rate{suffix}"], keep)
        # 4. Update what changes without gradients.
        with torch.no_grad():
            context = Context(kernels, self.dtype, key, scalars, key, evaluation_dtype=self.evaluation_dtype)
            advanced = self.objective.advance(state, Computed(losses, means["metrics"], sums), context, program)
            for name, value in advanced.arrays.items():
                if name not in self._still:
                    state[name].copy_(torch.where(keep, value, state[name]))
        shown_losses = {self._shown(name, "loss"): loss for name, loss in losses.items()}
        return {**shown_losses, **metrics, **advanced.metrics}

    def describe(self) -> dict[str, int]:
        """Numbers of parameters in each learner, by part where it names parts, and in frozen networks."""
        counts: dict[str, int] = {}
        for learner in self._learners:
            by_part = getattr(learner.module, "parts", False)
            for name, leaf in self._params[learner.name].items():
                part = f"{learner.name}/{name.split('/')[0]}" if by_part else learner.name
                part += "" if name in self._trained[learner.name] else " (not trained)"
                counts[part] = counts.get(part, 0) + leaf.size
        for name, network in self.objective.frozen.items():
            size = sum(leaf.size for leaf in network.init_spec().values())
            counts |= {f"{name} (frozen)": size} if size else {}
        return counts

    def _differentiate(
        self, learners: tuple[Learner, ...], leaves: Mapping[str, State], state: State, batch: dict[str, Tensor],
        context: Context, program: str,
    ) -> tuple[dict[str, State], State]:
        """Computes means (losses, metrics and each learner's gradients) and sums."""
        computed = self.objective.compute(leaves, state, batch, context, program)
        means: dict[str, State] = {
            "losses": {name: loss.detach() for name, loss in computed.losses.items()}, "metrics": computed.metrics}
        # The main learner comes last: its backward pass may free the graph that all learners share.
        for learner in reversed(learners):
            trained = {name: leaves[learner.name][name] for name in self._trained[learner.name]}
            means[f"gradients/{learner.name}"] = gradients(
                computed.losses[learner.name], trained, retain_graph=learner is not learners[0])
        return means, computed.sums

    def _leaves(self, state: State, learner: Learner) -> State:
        """A network's arrays, in the state's memory; those that are trained begin a new autograd graph."""
        trained, arrays = self._trained[learner.name], {}
        for section, names in ((sections.params, self._params[learner.name]),
                               (sections.statistics, statistics_spec(learner.module))):
            for name in names:
                array = state[section(learner.name) + name]
                arrays[name] = array.detach().requires_grad_(name in trained)
        return arrays

    def _values_to_check(
        self, learners: tuple[Learner, ...], losses: State, norms: Mapping[str, State],
    ) -> list[Tensor]:
        """Losses and norms of gradients, in the order of `checked`; what this program does not compute is finite."""
        values: dict[str, Tensor] = {}
        for learner in learners:
            values[self._shown(learner.name, "loss")] = losses[learner.name]
            values |= {self._shown(learner.name, name): norm for name, norm in norms[learner.name].items()}
        good = torch.zeros_like(losses[self._main])
        return [values.get(name, good) for name in self.checked]

    def _shown(self, learner: str, name: str) -> str:
        return name if learner == self._main else f"{learner}/{name}"


def _trained(learner: Learner, params: Spec) -> Spec:
    """The parameters that a learner trains."""
    trained = {name: leaf for name, leaf in params.items() if re.fullmatch(learner.trains, name)}
    if not trained:
        raise ValueError(f"trains must match parameters of {learner.name}, {learner.trains!r} matches none; they are "
                         f"{', '.join(sorted(params))}")
    return trained
