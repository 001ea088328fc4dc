"""Run by test_masked_xla.py in processes of their own: a masked prior on a mesh of CPU_NUM_DEVICES virtual devices.

    python -m tests.prior.xla_masked RESULTS.npz

A loss with its gradients, measures, and guided draws with given codes. Writes what came out, and what torch_xla
counted.
"""
import sys

import numpy as np
import torch
import torch_xla.debug.metrics as xla_metrics

from vqim.contracts.context import Context
from vqim.contracts.grid import Level, TokenGrid
from vqim.contracts.placing import place
from vqim.nn.module import apply, arrays_spec
from vqim.prior.guidance import GuidanceSchedule
from vqim.prior.masked import MaskedPrior
from vqim.prior.masked_sampler import MaskedSampler
from vqim.runtime.settings import XlaSettings
from vqim.runtime.xla import XlaRuntime
from vqim.state.random import step_key

BATCH_SIZE = 16


def make_prior() -> MaskedPrior:
    """Two levels with vocabularies of different sizes, two codes a position."""
    grid = TokenGrid((Level(1, 2, 2, 5), Level(2, 3, 2, 9)))
    return MaskedPrior(grid, 3, width=16, num_layers=1, num_heads=2, hidden=32, class_dropout_rate=0.3)


def given_tokens() -> np.ndarray:
    """A third of the places, int64 [B, N, K]; -1 elsewhere."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 5, (BATCH_SIZE, 8, 2))
    return np.where(generator.random(tokens.shape) < 0.3, tokens, -1)


def compute(prior: MaskedPrior, arrays: dict, runtime: XlaRuntime) -> dict[str, np.ndarray]:
    """Loss, one gradient, and measures of a batch."""
    def program(arrays: dict, batch: dict, scalars: dict) -> list[torch.Tensor]:
        context = Context(runtime.kernels, key=step_key(scalars["seed"], scalars["step"], "test"))
        leaves = {name: array.detach().requires_grad_() for name, array in arrays.items()}
        loss, _ = apply(prior.loss, leaves, batch["tokens"], batch["labels"], context)
        loss.backward()
        measures = apply(prior.measure, arrays, batch["tokens"], batch["labels"], Context(runtime.kernels))
        return [loss.detach(), leaves["code_table_VZ"].grad, measures["bits_per_masked_token"].detach()]

    tokens = np.random.default_rng(1).integers(0, 5, (BATCH_SIZE, 8, 2))
    batch = runtime.put({"tokens": tokens, "labels": np.arange(BATCH_SIZE, dtype=np.int32) % 3})
    found = runtime.fetch(runtime.compile(program)(arrays, batch, runtime.scalars({"seed": 3, "step": 2})))
    return dict(zip(("loss", "gradient", "bits"), found, strict=True))


def draw(prior: MaskedPrior, arrays: dict, runtime: XlaRuntime) -> dict[str, np.ndarray]:
    """Tokens drawn in both orders, and the number of compilations for each sampler."""
    found, labels_B = {}, np.arange(BATCH_SIZE, dtype=np.int32) % 3
    for name, sampler in {"confidence": MaskedSampler(num_steps=5, guidance=3.0, temperature=0.9),
                          "scheduled": MaskedSampler(num_steps=7, guidance=2.0, temperature=1.2,
                                                     guidance_schedule=GuidanceSchedule("cosine", 2.0)),
                          "halton": MaskedSampler(num_steps=4, order="halton")}.items():
        before = xla_metrics.counter_value("UncachedCompile") or 0
        bound = sampler.bind(prior, runtime, BATCH_SIZE, torch.float32)
        tokens_BNK = bound(arrays, labels_B, np.arange(BATCH_SIZE), 0, given_tokens())
        found[f"compiled/{name}"] = np.array((xla_metrics.counter_value("UncachedCompile") or 0) - before)
        found[f"tokens/{name}"], = runtime.fetch([tokens_BNK])
    return found


if __name__ == "__main__":
    on_mesh, model = XlaRuntime(XlaSettings()), make_prior()
    placed = place(arrays_spec(model), 0, on_mesh)
    results = compute(model, placed, on_mesh) | draw(model, placed, on_mesh)
    fallbacks = [counter for counter in xla_metrics.counter_names() if counter.startswith("aten::")]
    np.savez(sys.argv[1], **results, fallbacks=np.array(fallbacks, dtype=str))
