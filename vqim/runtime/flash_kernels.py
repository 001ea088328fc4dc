"""Attention and its gradients as Pallas kernels of jax, for TPUs.

Queries, keys, values and their gradients have heads side by side, as the projections make them, so that nothing is
transposed between matrix products. A kernel takes as many heads as fill vector registers, all keys, and one block of
queries after the other. So no softmax is combined from parts, and the backward pass, which computes it again, needs
only queries, keys, values and the result's gradient. It has five products; kernels that cut keys have seven.

    B batch, T queries, S keys, H head size, E = heads * H; t queries in a block, s keys that they see
"""
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vqim.runtime.flash_blocks import choose_blocks

Settings = tuple[int, bool]
"""The number of heads, and whether a query t sees only the keys s <= t."""

Array = Any  # jax.Array: jax's types are not checked
Ref = Any


def attend(settings: Settings, q_BTE: Array, k_BSE: Array, v_BSE: Array) -> list[Array]:
    """softmax(q k^T / sqrt(H)) v, [B, T, E]; sums of products and softmax are in float32."""
    return _call(settings, _attend, 2, (q_BTE,), (k_BSE, v_BSE), (q_BTE,), ())


def gradients(settings: Settings, q_BTE: Array, grad_BTE: Array, k_BSE: Array, v_BSE: Array) -> list[Array]:
    """The gradients of q, k and v, given the gradient of `attend`'s result."""
    return _call(settings, _gradients, 5, (q_BTE, grad_BTE), (k_BSE, v_BSE), (q_BTE,), (k_BSE, v_BSE))


def allocate(settings: tuple[int, ...], near: Array) -> list[Array]:
    """An uninitialised array in HBM with a given shape and `near`'s dtype.

    Args:
      settings: a number, and the shape. XLA merges calls with the same number into one call, and copies its result.
      near: any array.
    """
    number, *shape = settings
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        lambda near_ref, out_ref: None, in_specs=[anywhere], out_specs=[anywhere],
        out_shape=[jax.ShapeDtypeStruct(tuple(shape), near.dtype)], name=f"allocate_{number}",
        cost_estimate=pl.CostEstimate(flops=0, transcendentals=number, bytes_accessed=0))(near)


def _call(
    settings: Settings, kernel: Any, num_products: int, of_queries: Sequence[Array], of_keys: Sequence[Array],
    like_queries: Sequence[Array], like_keys: Sequence[Array],
) -> list[Array]:
    """Runs a kernel over batch, groups of heads, and blocks of queries."""
    (num_heads, causal), queries, keys = settings, of_queries[0], of_keys[0]
    (batch, num_queries, size), num_keys = queries.shape, keys.shape[1]
    head_size = size // num_heads
    blocks = choose_blocks(num_heads, head_size, num_queries, num_keys, queries.dtype.itemsize)
    block = blocks.num_queries
    starts = range(0, num_queries, block)
    seen = [min(num_keys, start + block) if causal else num_keys for start in starts]
    of_block = pl.BlockSpec((1, block, blocks.width), lambda b, g, i: (b, i, g))
    of_all = pl.BlockSpec((1, num_keys, blocks.width), lambda b, g, i: (b, 0, g))
    of_all_once = pl.BlockSpec(of_all.block_shape, of_all.index_map, pipeline_mode=pl.Buffered(1))
    if queries.dtype == jnp.float32:
        sums, of_all = [], of_all_once  # products at 'highest' need the second buffer's memory
    else:
        sums = [pltpu.VMEM((num_keys, blocks.width), jnp.float32)] * len(like_keys)
    pairs = block * sum(seen)

    def run(*refs: Ref) -> None:
        if not causal:
            kernel(head_size, None, num_keys, *refs)
            return
        for i, (start, end) in enumerate(zip(starts, seen, strict=True)):
            pl.when(pl.program_id(2) == i)(functools.partial(kernel, head_size, start, end, *refs))

    return pl.pallas_call(
        run, grid=(batch, num_heads // blocks.num_heads, len(starts)), scratch_shapes=sums,
        in_specs=[of_block] * len(of_queries) + [of_all_once] * len(of_keys),
        out_specs=[of_block] * len(like_queries) + [of_all] * len(like_keys),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (*like_queries, *like_keys)],
        cost_estimate=pl.CostEstimate(
            flops=2 * num_products * batch * size * pairs, transcendentals=batch * num_heads * pairs,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*of_queries, *of_keys, *like_queries, *like_keys))),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
    )(*of_queries, *of_keys)


def _attend(head_size: int, first: int | None, num_keys: int, q_ref: Ref, k_ref: Ref, v_ref: Ref, out_ref: Ref) -> None:
    """Attention of a block of queries to the keys that it sees; `first` is its first query's number if causal."""
    for head in _heads(q_ref, head_size):
        weights_ts, factor_t1 = _softmax(q_ref[0, :, head], k_ref[0, :num_keys, head], first)
        v_sH = v_ref[0, :num_keys, head]
        out_ref[0, :, head] = (_dot(weights_ts.astype(v_sH.dtype), v_sH) * factor_t1).astype(out_ref.dtype)


def _gradients(
    head_size: int, first: int | None, num_keys: int, q_ref: Ref, grad_ref: Ref, k_ref: Ref, v_ref: Ref,
    grad_q_ref: Ref, grad_k_ref: Ref, grad_v_ref: Ref, *sums: Ref,
) -> None:
    """See `_attend`. Gradients of keys and values are summed over blocks, in float32."""
    sum_k_ref, sum_v_ref = sums or (grad_k_ref.at[0], grad_v_ref.at[0])

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        sum_k_ref[...] = jnp.zeros_like(sum_k_ref)
        sum_v_ref[...] = jnp.zeros_like(sum_v_ref)

    scale = head_size**-0.5
    for head in _heads(q_ref, head_size):
        q_tH, k_sH, v_sH = q_ref[0, :, head], k_ref[0, :num_keys, head], v_ref[0, :num_keys, head]
        weights_ts, factor_t1 = _softmax(q_tH, k_sH, first)
        grad_tH = (grad_ref[0, :, head] * factor_t1).astype(q_tH.dtype)
        sum_v_ref[:num_keys, head] += _dot(weights_ts.astype(q_tH.dtype).T, grad_tH)
        grad_ts = _dot(grad_tH, v_sH.T)
        grad_ts = weights_ts * (grad_ts - (weights_ts * grad_ts).sum(1, keepdims=True) * factor_t1)
        grad_ts = grad_ts.astype(q_tH.dtype)
        grad_q_ref[0, :, head] = (_dot(grad_ts, k_sH) * scale).astype(grad_q_ref.dtype)
        sum_k_ref[:num_keys, head] += _dot(grad_ts.T, q_tH) * scale

    if sums:
        @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
        def _() -> None:
            grad_k_ref[0] = sum_k_ref[...].astype(grad_k_ref.dtype)
            grad_v_ref[0] = sum_v_ref[...].astype(grad_v_ref.dtype)


def _heads(ref: Ref, head_size: int) -> list[Any]:
    return [pl.ds(start, head_size) for start in range(0, ref.shape[2], head_size)]


def _softmax(q_tH: Array, k_sH: Array, first: int | None) -> tuple[Array, Array]:
    """Softmax of q k^T / sqrt(H): float32 weights [t, s], and factors [t, 1] that make their sums 1.

    Each logit needs a few vector operations, so vector units are as busy here as matrix units. Therefore the factors
    are applied later, to arrays with fewer elements, and only the square where queries and keys have the same positions
    is masked.
    """
    logits_ts = _dot(q_tH, k_sH.T)
    if first is not None and first < len(k_sH):
        last_ts = logits_ts[:, first:]
        t, s = (jax.lax.broadcasted_iota(jnp.int32, last_ts.shape, axis) for axis in (0, 1))
        last_ts = jnp.where(s <= t, last_ts, -jnp.inf)
        logits_ts = jnp.concatenate([logits_ts[:, :first], last_ts], 1) if first else last_ts
    scale = q_tH.shape[1] ** -0.5
    weights_ts = jnp.exp2((logits_ts - logits_ts.max(1, keepdims=True)) * (scale / math.log(2)))
    return weights_ts, 1 / weights_ts.sum(1, keepdims=True)


def _dot(a: Array, b: Array) -> Array:
    return jax.lax.dot(a, b, preferred_element_type=jnp.float32)
