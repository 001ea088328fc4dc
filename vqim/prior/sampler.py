"""Draws token sequences from priors that give one code at a time, in raster, channel or depth order.

    B images in a batch, N positions, K codes a position, S = N K draws, V vocabulary
"""
import dataclasses
import functools
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from vqim.contracts.context import Context, dtype_name
from vqim.contracts.grid import TokenGrid
from vqim.contracts.placing import own_rows
from vqim.contracts.prior import Draw, Sampler, Stepwise, check_numbers, check_seed
from vqim.contracts.runtime import Runtime
from vqim.nn.module import apply
from vqim.nn.transformer import lay_out_arrays
from vqim.prior.guidance import GuidanceSchedule, check_can_guide, check_guidance, guided_logits, has_branch
from vqim.prior.sampling import check_sampling, sample_logits
from vqim.state.leaf import State
from vqim.state.random import fold_key, step_key, uniform_rows

STEPWISE = ("num_steps", "vocabulary", "empty_cache", "step")


@dataclasses.dataclass(frozen=True)
class StepwiseSampler:
    """Draws one code after another from P(x | class), against a cache; one program serves every step.

    With its default settings it draws from the model's own distribution, as in all of ViT-VQGAN's figures.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest code.
      top_k: keeps only the k likeliest codes; None keeps all.
      top_p: keeps only the likeliest codes whose probabilities first sum to p; None keeps all.
      guidance: the scale s of classifier-free guidance: logits c + (s - 1) (c - u), with c from the class and u without
        it. 1.0 has no second branch. The prior must have been trained with a `class_dropout_rate`.
      guidance_schedule: how the scale changes with the steps; by default it does not.
      int8: whether the blocks' and the head's products round their weights to 8 bits and their inputs to 7. It needs
        the torch runtime on a CPU and a prior in float32, is faster there, and draws from a distribution that differs
        a little.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = 1.0
    guidance_schedule: GuidanceSchedule = GuidanceSchedule()
    int8: bool = False

    any_order = False
    """See `Sampler`: not a setting."""

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_k, self.top_p)
        check_guidance(self.guidance)

    def with_settings(self, **settings: Any) -> Sampler:
        """See `Sampler.with_settings`."""
        return with_settings(self, **settings)

    def bind(self, prior: Any, runtime: Runtime, batch_size: int, dtype: torch.dtype) -> Draw:
        """See `Sampler.bind`."""
        missing = [name for name in STEPWISE if not hasattr(prior, name)]
        if missing:
            raise ValueError(f"sampler must fit the prior: StepwiseSampler draws code by code, and "
                             f"{type(prior).__name__} has no {', '.join(missing)}; a masked prior needs "
                             f"prior.PriorObjective.sampler = @prior.MaskedSampler()")
        check_batch_size(batch_size, runtime)
        check_can_guide(self.guidance, prior)
        about = runtime.describe()
        if self.int8 and ((about["runtime"], about["device"]) != ("torch", "cpu") or dtype != torch.float32):
            raise ValueError(f"int8 needs the torch runtime on a CPU and a prior in float32, got {about['runtime']} on "
                             f"{about['device']} and {dtype_name(dtype)}")
        return _StepwiseDraw(self, prior, runtime, batch_size, dtype)


class _StepwiseDraw:
    """A sampler that is bound to a prior."""

    def __init__(
        self, sampler: StepwiseSampler, prior: Stepwise, runtime: Runtime, batch_size: int, dtype: torch.dtype,
    ):
        self._sampler, self._prior, self._runtime = sampler, prior, runtime
        self._batch_size, self._dtype = batch_size, dtype
        self._has_branch = has_branch(sampler.guidance)
        self._has_top_p = sampler.top_p is not None and sampler.top_p < 1  # at 1, rounding would remove the far tail
        self._program = runtime.compile(self._step)
        assert isinstance(prior, nn.Module)
        self._lay_out = runtime.compile(functools.partial(
            lay_out_arrays, prior, kernels=runtime.kernels, dtype=torch.int8 if sampler.int8 else dtype))

    def __call__(
        self, arrays: State, labels_B: np.ndarray, numbers_B: np.ndarray, seed: int,
        given_BNK: np.ndarray | None = None,
    ) -> Tensor:
        """See `Sampler.bind`."""
        check_seed(seed)
        sampler, runtime, grid = self._sampler, self._runtime, self._prior.grid
        device, _ = put_images(runtime, grid, self._batch_size, labels_B, numbers_B, given_BNK)
        keys_BS = draw_keys(numbers_B, seed, self._prior.num_steps)[own_rows(self._batch_size, runtime)]
        device |= runtime.put({"keys": keys_BS})
        num_sequences = (2 if self._has_branch else 1) * self._batch_size
        empty = self._prior.empty_cache(num_sequences, self._dtype, device["drawn"].device, runtime.kernels)
        cache = dict(zip(empty, runtime.cut(list(empty.values()), axis=1), strict=True))
        arrays = {**arrays, **self._lay_out(arrays)}
        settings = {"temperature": sampler.temperature, "top_p": sampler.top_p or 1.0}
        num_steps = self._prior.num_steps
        for step in range(num_steps):
            guidance = sampler.guidance_schedule.scale(sampler.guidance, step, num_steps)
            scalars = runtime.scalars({"step": step, "guidance": guidance, **settings})
            self._program(arrays, device, cache, scalars, step)
        return rearrange(device["drawn"], "b (n k) -> b n k", k=grid.num_channels)

    def _step(
        self, arrays: State, images: dict[str, Tensor], cache: dict[str, Tensor], scalars: dict[str, Tensor],
        reach: int,
    ) -> None:
        """Makes one draw, in place, where no token is given."""
        drawn_BS, labels_B = images["drawn"], images["labels"]
        with torch.no_grad():
            step = scalars["step"].to(drawn_BS.device, non_blocking=True)
            logits_BV = self._logits(arrays, drawn_BS, labels_B, cache, step, scalars, reach)
            keys_B = images["keys"].index_select(1, step.reshape(1))[:, 0]
            codes_B = sample_logits(
                logits_BV, uniform_rows(keys_B, logits_BV.shape[-1]),
                temperature=0.0 if self._sampler.temperature == 0 else scalars["temperature"],
                top_k=self._sampler.top_k, top_p=scalars["top_p"] if self._has_top_p else None)
            here_S = torch.arange(drawn_BS.shape[1], device=drawn_BS.device) == step
            drawn_BS.copy_(torch.where(here_S & (drawn_BS < 0), codes_B[:, None], drawn_BS))

    def _logits(
        self, arrays: State, drawn_BS: Tensor, labels_B: Tensor, cache: dict[str, Tensor], step: Tensor,
        scalars: dict[str, Tensor], reach: int,
    ) -> Tensor:
        """Logits of this step's codes, float32 [B, V]."""
        context = Context(self._runtime.kernels, self._dtype, reach=reach)
        return guided_logits(
            lambda tokens, labels: apply(self._prior.step, arrays, tokens, labels, cache, step, context),
            drawn_BS.clamp_min(0), labels_B, scalars["guidance"] if self._has_branch else None)


def draw_keys(numbers_B: np.ndarray, seed: int, num_steps: int) -> np.ndarray:
    """The random keys of all draws of some images, int32 [B, S]: on the host, since a step would make them one by one.

    They take 130 operations, more than two layers of a prior.
    """
    steps_S = torch.arange(num_steps, dtype=torch.int32)
    keys_S = fold_key(step_key(torch.tensor(seed, dtype=torch.int32), steps_S, "sample"), "code")
    return fold_key(keys_S, torch.from_numpy(numbers_B.astype(np.int32))[:, None]).numpy()


def put_images(
    runtime: Runtime, grid: TokenGrid, batch_size: int, labels_B: np.ndarray, numbers_B: np.ndarray,
    given_BNK: np.ndarray | None,
) -> tuple[dict[str, Tensor], np.ndarray]:
    """A batch on the devices: `labels`, `numbers`, and `drawn` [B, S], which has the given tokens and -1 elsewhere.

    Its other result is `drawn` on the host. Raises ValueError where a shape is wrong.
    """
    check_numbers(labels_B, batch_size, "labels_B")
    check_numbers(numbers_B, batch_size)
    shape = (batch_size, grid.num_positions, grid.num_channels)
    given_BNK = np.full(shape, -1, np.int64) if given_BNK is None else given_BNK
    if given_BNK.shape != shape:
        raise ValueError(f"given_BNK must have shape {shape}, -1 where tokens are to be drawn; got {given_BNK.shape}")
    given_BS = rearrange(given_BNK, "b n k -> b (n k)").astype(np.int64)
    own = own_rows(batch_size, runtime)
    return runtime.put({"labels": labels_B[own].astype(np.int32), "numbers": numbers_B[own].astype(np.int32),
                        "drawn": given_BS[own]}), given_BS


def check_batch_size(batch_size: int, runtime: Runtime) -> None:
    """Raises ValueError unless all devices can have the same number of images."""
    if batch_size % runtime.num_batch_shards:
        raise ValueError(f"batch_size must be a multiple of {runtime.num_batch_shards}, got {batch_size}")


def with_settings(sampler: Any, **settings: Any) -> Any:
    """A sampler (a dataclass) with other settings; ValueError for settings that it does not have."""
    names = [field.name for field in dataclasses.fields(sampler)]
    unknown = sorted(settings.keys() - set(names))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: {type(sampler).__name__} has no such setting; it has "
                         f"{', '.join(names)}")
    return dataclasses.replace(sampler, **settings)
