"""Draws tokens from a masked prior: many codes at once, in a few steps.

    B images in a batch, N positions, K codes a position, S = N K places, P of these at a time, V vocabulary
"""
import dataclasses
from typing import Any, Literal, get_args

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.placing import own_rows
from vqim.contracts.prior import Draw, Filling, Sampler, check_seed
from vqim.contracts.runtime import Runtime
from vqim.nn.gumbel import gumbel_noise
from vqim.nn.module import apply
from vqim.prior.guidance import GuidanceSchedule, check_can_guide, check_guidance, guided_logits, has_branch
from vqim.prior.masking import MaskSchedule, check_schedule, halton_order, masked_after_steps, ranks
from vqim.prior.sampler import check_batch_size, put_images, with_settings
from vqim.prior.sampling import check_sampling, sample_logits
from vqim.state.leaf import State
from vqim.state.random import fold_key, step_key, uniform_rows

Order = Literal["confidence", "halton"]

_PIECE = 2**18
"""Logits that a core draws from at a time: 1 MiB."""


@dataclasses.dataclass(frozen=True)
class MaskedSampler:
    """Draws every masked code in each step and keeps some of them, until none is masked (MaskGIT section 3.2).

    How many stay masked after each step is `masked_after_steps`; one program serves every step.

    By 'confidence', those are kept whose log-probability is highest, with Gumbel noise that falls linearly to zero in
    the last step. By 'halton', places come in a spread-out order that does not depend on the draws (`halton_order`).

    Attributes:
      num_steps: T, the number of steps; MoVQ has 8 without and 12 with classes.
      schedule: gamma, which says how many codes are masked after each step.
      order: what decides which codes are kept.
      choice_temperature: scales the noise on the confidences; 4.5 in MaskGIT's demonstration. With 0, the most
        confident are kept, which gives images that are smoother and more alike. Not used by 'halton'.
      temperature: divides the logits of the draws; 0 takes the likeliest codes. Confidences are those of the logits as
        they are.
      guidance: the scale of classifier-free guidance; see `StepwiseSampler`.
      guidance_schedule: how the scale changes with the steps.
    """

    num_steps: int = 8
    schedule: MaskSchedule = "cosine"
    order: Order = "confidence"
    choice_temperature: float = 4.5
    temperature: float = 1.0
    guidance: float = 1.0
    guidance_schedule: GuidanceSchedule = GuidanceSchedule()

    any_order = True
    """See `Sampler`: not a setting."""

    def __post_init__(self) -> None:
        check_sampling(self.temperature, None, None)
        check_guidance(self.guidance)
        check_schedule("schedule", self.schedule)
        if not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise ValueError(f"num_steps must be a whole number of at least 1, got {self.num_steps}")
        if self.order not in get_args(Order):
            raise ValueError(f"order must be one of {', '.join(get_args(Order))}; got {self.order!r}")
        if not self.choice_temperature >= 0:
            raise ValueError(f"choice_temperature must be at least 0, got {self.choice_temperature}")

    def with_settings(self, **settings: Any) -> Sampler:
        """See `Sampler.with_settings`."""
        return with_settings(self, **settings)

    def bind(self, prior: Any, runtime: Runtime, batch_size: int, dtype: torch.dtype) -> Draw:
        """See `Sampler.bind`."""
        if not hasattr(prior, "logits"):
            raise ValueError(f"sampler must fit the prior: MaskedSampler draws all masked codes at once, and "
                             f"{type(prior).__name__} has no logits of them; prior.StepwiseSampler may fit")
        check_batch_size(batch_size, runtime)
        check_can_guide(self.guidance, prior)
        return _MaskedDraw(self, prior, runtime, batch_size, dtype)


class _MaskedDraw:
    """A sampler that is bound to a prior."""

    def __init__(
        self, sampler: MaskedSampler, prior: Filling, runtime: Runtime, batch_size: int, dtype: torch.dtype,
    ):
        self._sampler, self._prior, self._runtime = sampler, prior, runtime
        self._batch_size, self._dtype = batch_size, dtype
        self._has_branch = has_branch(sampler.guidance)
        self._turns_S = halton_order(prior.grid) if sampler.order == "halton" else None
        self._program = runtime.compile(self._step)

    def __call__(
        self, arrays: State, labels_B: np.ndarray, numbers_B: np.ndarray, seed: int,
        given_BNK: np.ndarray | None = None,
    ) -> Tensor:
        """See `Sampler.bind`."""
        check_seed(seed)
        sampler, runtime, grid = self._sampler, self._runtime, self._prior.grid
        device, given_BS = put_images(runtime, grid, self._batch_size, labels_B, numbers_B, given_BNK)
        own = own_rows(self._batch_size, runtime)
        if self._turns_S is not None:
            turns_BS = np.tile(self._turns_S.astype(np.float32), (self._batch_size, 1))
            device |= runtime.put({"turns": turns_BS[own]})
        for step, left_B in enumerate(masked_after_steps(sampler.schedule, (given_BS < 0).sum(1), sampler.num_steps)):
            scalars = runtime.scalars({
                "step": step, "seed": seed, "temperature": sampler.temperature,
                "noise": sampler.choice_temperature * (1 - (step + 1) / sampler.num_steps),
                "guidance": sampler.guidance_schedule.scale(sampler.guidance, step, sampler.num_steps)})
            self._program(arrays, device, runtime.put({"left": left_B[own].astype(np.int32)}), scalars)
        return rearrange(device["drawn"], "b (n k) -> b n k", k=grid.num_channels)

    def _step(
        self, arrays: State, images: dict[str, Tensor], counts: dict[str, Tensor], scalars: dict[str, Tensor],
    ) -> None:
        """Fills masked places, in place, until `left` of each image are masked."""
        drawn_BS = images["drawn"]
        with torch.no_grad():
            logits_BSV = self._logits(arrays, drawn_BS, images["labels"], scalars["guidance"])
            key = step_key(scalars["seed"], scalars["step"], "sample")
            code_keys_B, choice_keys_B = (
                fold_key(fold_key(key, purpose).to(drawn_BS.device, non_blocking=True), images["numbers"])
                for purpose in ("code", "choice"))
            codes_BS, log_p_BS = self._draw(logits_BSV, code_keys_B, scalars["temperature"])
            if log_p_BS is None:
                preference_BS = -images["turns"]
            else:
                noise_BS = gumbel_noise(uniform_rows(choice_keys_B, drawn_BS.shape[1]))
                preference_BS = log_p_BS + scalars["noise"] * noise_BS
            is_masked_BS = drawn_BS < 0
            # What is known comes last in the ranks, so that the lowest `left` are masked ones.
            ranks_BS = ranks(torch.where(is_masked_BS, preference_BS, torch.inf))
            keeps_BS = is_masked_BS & (ranks_BS >= counts["left"][:, None])
            drawn_BS.copy_(torch.where(keeps_BS, codes_BS, drawn_BS))

    def _draw(self, logits_BSV: Tensor, keys_B: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor | None]:
        """A code for every place, and, where that decides the order, its log-probability at temperature 1.

        A draw takes 30 operations, each of which reads and writes arrays of the logits' size. On a CPU they go a few
        places at a time, which a core's cache holds: the same draws in a quarter of the time.
        """
        batch_size, num_places, vocabulary = logits_BSV.shape
        at_once = num_places
        if logits_BSV.device.type == "cpu":
            at_once = max(1, _PIECE * torch.get_num_threads() // (batch_size * vocabulary))
        codes, log_p = [], []
        for first in range(0, num_places, at_once):
            piece_BPV = logits_BSV[:, first:first + at_once]
            uniform_BF = uniform_rows(keys_B, piece_BPV[0].numel(), first * vocabulary)
            codes_BP = sample_logits(
                piece_BPV, uniform_BF.reshape(piece_BPV.shape),
                temperature=0.0 if self._sampler.temperature == 0 else temperature)
            codes.append(codes_BP)
            if self._turns_S is None:
                log_p.append(piece_BPV.log_softmax(-1).gather(-1, codes_BP[..., None])[..., 0])
        return torch.cat(codes, 1), torch.cat(log_p, 1) if log_p else None

    def _logits(self, arrays: State, drawn_BS: Tensor, labels_B: Tensor, scale: Tensor) -> Tensor:
        """Logits of all places, float32 [B, S, V]."""
        context = Context(self._runtime.kernels, self._dtype)
        tokens_BNK = rearrange(drawn_BS, "b (n k) -> b n k", k=self._prior.grid.num_channels)
        logits_BNKV = guided_logits(
            lambda tokens, labels: apply(self._prior.logits, arrays, tokens, labels, context),
            tokens_BNK, labels_B, scale if self._has_branch else None)
        return rearrange(logits_BNKV, "b n k v -> b (n k) v")
