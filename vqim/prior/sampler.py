"""Draws token sequences from a prior, one position at a time, against a cache of keys and values.

    B batch, N tokens of an image, K = 1 codes a position
"""
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqim.nn.attention import Cache
from vqim.nn.context import Context
from vqim.nn.module import apply
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.sampling import check_sampling, sample_logits
from vqim.state.leaf import State
from vqim.state.random import fold_key, step_key


class Sampler:
    """Samples from P(x | class), position by position; one program serves every position.

    Without temperature, top_k and top_p it draws from the model's own distribution, as all figures of ViT-VQGAN do.

    Args:
      prior: the network.
      runtime: where to run.
      batch_size: of every call.
      temperature, top_k, top_p: see `vqim.prior.sampling.sample_logits`.
      dtype: of computation.
    """

    def __init__(
        self, prior: AutoregressivePrior, runtime: Any, batch_size: int, *,
        temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        check_sampling(temperature, top_k, top_p)
        if batch_size % runtime.num_batch_shards:
            raise ValueError(f"batch_size must be a multiple of {runtime.num_batch_shards}, got {batch_size}")
        self.prior, self.runtime, self.batch_size, self.dtype = prior, runtime, batch_size, dtype
        self.settings: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        self._program = runtime.compile(self._step)

    def __call__(self, params: State, labels_B: np.ndarray, seed: int) -> Tensor:
        """Draws one sequence for each label.

        Args:
          params: of the prior.
          labels_B: int32 [batch_size] classes; -1 where none is told.
          seed: the same seed draws the same tokens, on one kind of runtime.

        Returns:
          int64 tokens [B, N, 1] on the device.
        """
        if labels_B.shape != (self.batch_size,):
            raise ValueError(f"labels_B must have shape ({self.batch_size},), got {labels_B.shape}")
        share = self.batch_size // self.runtime.process_count
        own_B = labels_B[self.runtime.process_index * share:][:share].astype(np.int32)
        device = self.runtime.put({"labels": own_B, "tokens": np.zeros((share, self.prior.num_tokens), np.int64)})
        empty = self.prior.empty_cache(self.batch_size, self.dtype, device["tokens"].device)
        cache = Cache(*self.runtime.cut([empty.keys, empty.values], axis=1))
        for position in range(self.prior.num_tokens):
            scalars = self.runtime.scalars({"position": position, "seed": seed})
            self._program(params, device["tokens"], device["labels"], cache, scalars)
        return device["tokens"][..., None]

    def _step(
        self, params: State, tokens_BN: Tensor, labels_B: Tensor, cache: Cache, scalars: dict[str, Tensor],
    ) -> None:
        """Draws the token at one position, in place."""
        with torch.no_grad():
            kernels, position = self.runtime.kernels, scalars["position"].to(tokens_BN.device)
            here_N = torch.arange(self.prior.num_tokens, device=tokens_BN.device) == position
            before_1 = (position.long() - 1).clamp_min(0).reshape(1)
            previous_B = tokens_BN.index_select(1, before_1)[:, 0]
            context = Context(kernels, self.dtype)
            logits_BV, new = apply(self.prior.step, params, previous_B, labels_B, cache, position, context)
            key = fold_key(step_key(scalars["seed"], scalars["position"], "sample"), "code")
            uniform_BV = kernels.uniform(key, tuple(logits_BV.shape), logits_BV.device)
            drawn_B = sample_logits(logits_BV, uniform_BV, **self.settings)
            tokens_BN.copy_(torch.where(here_N, drawn_B[:, None], tokens_BN))
            for array, entry in ((cache.keys, new.keys), (cache.values, new.values)):
                array.copy_(torch.where(here_N[:, None], entry, array))
