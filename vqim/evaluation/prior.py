"""Measures a prior on a validation set, and shows what it draws and what it expects.

    B batch, N tokens, K codes a position, V vocabulary, C image channels, H W image size
"""
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vqim.evaluation.codebook import count_codes, entropy_bits
from vqim.evaluation.reconstruction import Averages, to_bytes
from vqim.prior.sampler import Sampler
from vqim.prior.sampling import check_sampling
from vqim.prior.task import PriorTask
from vqim.state.leaf import State, select


class LikelihoodEvaluator:
    """Bits per token on a validation set, the entropy of tokens' unigram distributions, and the teacher-forced view.

    Each level of tokens has a unigram distribution of its own; the entropy is the mean over positions.

    The view decodes, position by position, the code that the prior holds likeliest given the true codes before it
    (SeQ-GAN section 3.1): what the prior has understood of a picture, beside the picture itself.

    Args:
      batch_size: pictures at a time, over all processes.
      every: steps between two measurements; 0 for the end alone.
      num_images: shown in the teacher-forced view.
    """

    def __init__(self, batch_size: int, every: int = 0, num_images: int = 8):
        self.batch_size, self.every, self.num_images = batch_size, every, num_images
        self._program: Any = None

    def __call__(self, task: PriorTask, data: Any, state: State, runtime: Any) -> dict[str, Any]:
        """See `vqim.training.task.Evaluator`."""
        def measure(arrays: State, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return _measure(task, arrays, batch, runtime.kernels)

        self._program = self._program or runtime.compile(measure)
        averages, grid = Averages(), task.tokenizer.grid
        counts = [np.zeros(level.vocabulary, np.int64) for level in grid.levels]
        view: dict[str, Any] = {}
        for batch in data.evaluation(
                self.batch_size // runtime.process_count,
                process_index=runtime.process_index, process_count=runtime.process_count):
            results = self._program(state, runtime.put(batch))
            valid_B, tokens_BNK, bits, accuracy = runtime.fetch(
                [results[name] for name in ("valid", "tokens", "bits_per_token", "token_accuracy")])
            averages.add({"bits_per_token": bits, "token_accuracy": accuracy}, valid_B)
            for of_level, indices in zip(counts, grid.split(tokens_BNK[valid_B]), strict=True):
                of_level += count_codes(indices, len(of_level))
            if not view and self.num_images:
                true_BHWC, expected_BHWC = runtime.fetch([results["true"], results["expected"]])
                count = min(self.num_images, len(true_BHWC))
                view["images/true_and_teacher_forced"] = np.concatenate([true_BHWC[:count], expected_BHWC[:count]])
        unigram = sum(level.num_positions * entropy_bits(of_level)
                      for level, of_level in zip(grid.levels, counts, strict=True)) / grid.num_positions
        means = averages.result()
        return {
            **{f"evaluation/{name}": value for name, value in means.items()},
            "evaluation/unigram_bits_per_token": unigram,
            "evaluation/bits_saved": 1 - means["bits_per_token"] / unigram if unigram else 0.0,
            **view,
        }


def _measure(task: PriorTask, state: State, batch: dict[str, Tensor], kernels: Any) -> dict[str, Tensor]:
    with torch.no_grad():
        tokens_BNK = task.tokens(state, batch, kernels)
        logits_BNV = task.logits(state, tokens_BNK, batch["labels"], kernels)
        tokens_BN, expected_BN = tokens_BNK[..., 0], logits_BNV.argmax(-1)
        nats_BN = F.cross_entropy(rearrange(logits_BNV, "b n v -> b v n"), tokens_BN, reduction="none")
        return {
            "valid": batch["valid"], "tokens": tokens_BNK,
            "bits_per_token": nats_BN.mean(1) / math.log(2),
            "token_accuracy": (tokens_BN == expected_BN).float().mean(1),
            "true": to_bytes(task.images(state, tokens_BNK, kernels)),
            "expected": to_bytes(task.images(state, expected_BN[..., None], kernels)),
        }


class SamplesEvaluator:
    """Pictures drawn from a prior, a row of each class.

    Args:
      num_columns: pictures of each class, or in all for a prior without classes.
      every: steps between two measurements; 0 for the end alone.
      temperature, top_k, top_p: see `vqim.prior.sampling.sample_logits`.
      seed: of the draws.
    """

    def __init__(
        self, num_columns: int = 8, every: int = 0,
        temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0,
    ):
        check_sampling(temperature, top_k, top_p)
        self.num_columns, self.every, self.seed = num_columns, every, seed
        self.settings: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        self._sampler: Sampler | None = None

    def __call__(self, task: PriorTask, data: Any, state: State, runtime: Any) -> dict[str, Any]:
        """See `vqim.training.task.Evaluator`."""
        classes = np.arange(task.num_classes) if task.num_classes else np.array([-1])
        labels_B = np.repeat(classes, self.num_columns)
        padding = -len(labels_B) % runtime.num_batch_shards
        padded_B = np.concatenate([labels_B, np.full(padding, -1)]).astype(np.int32)
        if self._sampler is None:
            self._sampler = Sampler(task.prior, runtime, len(padded_B), dtype=task.dtype, **self.settings)
        tokens_BNK = self._sampler(select(state, "params/prior/"), padded_B, self.seed)
        return {"images/samples": decode_tokens(task, state, runtime, tokens_BNK)[:len(labels_B)]}


def decode_tokens(task: PriorTask, state: State, runtime: Any, tokens_BNK: Tensor) -> np.ndarray:
    """Pictures of tokens, uint8 [B, H, W, C] on the host."""
    program = runtime.compile(lambda arrays, tokens: to_bytes(task.images(arrays, tokens, runtime.kernels)))
    return runtime.fetch([program(state, tokens_BNK)])[0]
