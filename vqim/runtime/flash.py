"""Flash attention on TPU: jax's Pallas kernels as operations of torch_xla, cut over batch and heads.

torch_xla has a binding of the same kernels. It lowers them for the platform that jax finds, builds its mesh anew from
as many devices as are here, and keeps second copies of queries, keys and values for the backward pass.

    B batch, N heads, T queries, S keys, H head dimension
"""
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torch_xla
import torch_xla.backends
import torch_xla.distributed.spmd as xs
from torch import Tensor
from torch_xla.experimental.custom_kernel import _extract_backend_config, to_jax_shape_dtype_struct

from vqim.runtime.xla_scan import keep

LANES = 128
"""Of a TPU's vector registers: sequences are multiples of it, and numbers that belong to a row are repeated over it."""

BLOCK_SIZES = (512, 256, 128)
"""Of queries and of keys: the largest that divides their number."""

Spec = tuple[Any, ...]
Jax = Any


def flash_attention(
    q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, *, causal: bool, mesh: xs.Mesh, spec: Spec,
) -> Tensor:
    """softmax(q k^T / sqrt(H)) v without an array of [T, S]; products accumulate, and softmax is, in float32.

    Args:
      q_BNTH, k_BNSH, v_BNSH: T and S are multiples of 128.
      causal: whether a query t sees the keys s <= t alone.
      mesh: over which arrays are cut.
      spec: how; the last two dimensions are whole, the first two divide evenly.
    """
    head_size = q_BNTH.shape[-1]
    # The kernels take heads of less than a register, or of whole registers. Zeros change no product.
    missing = -head_size % LANES if head_size > LANES else 0
    q, k, v = (F.pad(x, (0, missing)) if missing else x for x in (q_BNTH, k_BNSH, v_BNSH))
    return _Flash.apply(q, k, v, (causal, head_size**-0.5), mesh, spec)[..., :head_size]


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, settings: tuple[bool, float], mesh: xs.Mesh, spec: Spec,
    ) -> Tensor:
        if not any(ctx.needs_input_grad):
            return on_parts(attend, settings, [q, k, v], mesh, spec)[0]
        out, sums, maxima = on_parts(attend_and_keep, settings, [q, k, v], mesh, spec)
        out, sums, maxima = keep(out), keep(sums[..., 0]), keep(maxima[..., 0])
        ctx.save_for_backward(q, k, v, out, sums, maxima)
        ctx.settings, ctx.mesh, ctx.spec = settings, mesh, spec
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, out, sums, maxima = ctx.saved_tensors
        shifts = (out.float() * grad.float()).sum(-1)
        sums, maxima, shifts = (x[..., None].expand(*x.shape, LANES) for x in (sums, maxima, shifts))
        # In the order in which the call of Pallas inside each kernel has them.
        arrays = [q, k, v, sums, maxima, grad, shifts]
        (grad_q,) = on_parts(grad_of_queries, ctx.settings, arrays, ctx.mesh, ctx.spec)
        grad_k, grad_v = on_parts(grad_of_keys_and_values, ctx.settings, arrays, ctx.mesh, ctx.spec)
        return grad_q, grad_k, grad_v, None, None, None


def on_parts(
    kernel: Callable[..., Any], settings: tuple[bool, float], arrays: list[Tensor], mesh: xs.Mesh, spec: Spec,
) -> list[Tensor]:
    """Runs a kernel on every device, on its parts of the arrays, all of which are cut in the same way."""
    if mesh.size() == 1:
        return run(kernel, settings, arrays)
    manual = torch_xla._XLAC.OpSharding([], [], [], xs.ShardingType.MANUAL)
    shape, parts = arrays[0].shape[:2], []
    for array in arrays:
        part = array.clone()
        torch_xla._XLAC._xla_mark_sharding(part, mesh.get_op_sharding(spec))
        parts.append(torch_xla._XLAC._spmd_full_to_shard_shape(part))
    results = []
    for result in run(kernel, settings, parts):
        torch_xla._XLAC._mark_manual_sharding(result, manual)
        results.append(torch_xla._XLAC._spmd_shard_to_full_shape(
            result, mesh.get_op_sharding(spec), (*shape, *result.shape[2:]), result.dtype))
    return results


def run(kernel: Callable[..., Any], settings: tuple[bool, float], arrays: list[Tensor]) -> list[Tensor]:
    """Runs a kernel, which is a function of jax arrays that makes one call of Pallas, on tensors."""
    # The kernels have two precisions of float32 products, one bfloat16 pass and six.
    precision = "default" if torch_xla.backends.get_mat_mul_precision() == "default" else "highest"
    payload, results = _lowered(kernel, settings, tuple(map(to_jax_shape_dtype_struct, arrays)), precision)
    shapes, dtypes = zip(*((result.shape, getattr(torch, result.dtype.name)) for result in results), strict=True)
    return torch_xla._XLAC._xla_tpu_custom_call(arrays, payload, shapes, dtypes)


@functools.cache
def _lowered(
    kernel: Callable[..., Any], settings: tuple[bool, float], shapes: tuple[Any, ...], precision: str,
) -> tuple[str, Any]:
    """The kernel as the TPU compiler takes it, and the shapes and dtypes of its results."""
    import jax
    # The chips are torch_xla's: jax only writes kernels down, and must not look for devices of its own.
    jax.config.update("jax_platforms", "cpu")
    with jax.default_matmul_precision(precision):
        traced = jax.jit(kernel, static_argnums=0).trace(settings, *shapes)
        module = traced.lower(lowering_platforms=("tpu",)).compiler_ir()
    return _extract_backend_config(module), traced.out_info


def attend(settings: tuple[bool, float], q: Jax, k: Jax, v: Jax) -> tuple[Jax]:
    """The result alone, [B, N, T, H]."""
    return (_attend(settings, q, k, v, False),)


def attend_and_keep(settings: tuple[bool, float], q: Jax, k: Jax, v: Jax) -> tuple[Jax, Jax, Jax]:
    """The result, and the softmax's denominators and maxima, [B, N, T, 128] each."""
    out, *rows = _attend(settings, q, k, v, True)
    return out, *(row[..., None].repeat(LANES, -1) for row in rows)


def grad_of_queries(settings: tuple[bool, float], *arrays: Jax) -> tuple[Jax]:
    """Of q, k, v, denominators, maxima, the result's gradient, and shifts: its product with the result summed over H.

    Those that belong to rows are [B, N, T, 128].
    """
    block_q, block_k = _block(arrays[0]), _block(arrays[1])
    grad, _ = _kernels()._flash_attention_bwd_dq(
        *_of_backward(*arrays), block_q_major=block_q, block_k_major=block_k, block_k=block_k,
        causal=settings[0], sm_scale=settings[1], mask_value=_kernels().DEFAULT_MASK_VALUE, debug=False)
    return (grad,)


def grad_of_keys_and_values(settings: tuple[bool, float], *arrays: Jax) -> tuple[Jax, Jax]:
    """See `grad_of_queries`."""
    block_q, block_k = _block(arrays[0]), _block(arrays[1])
    return _kernels()._flash_attention_bwd_dkv(
        *_of_backward(*arrays), block_q_major=block_q, block_q=block_q, block_k_major=block_k, block_k=block_k,
        causal=settings[0], sm_scale=settings[1], mask_value=_kernels().DEFAULT_MASK_VALUE, debug=False)


def _attend(settings: tuple[bool, float], q: Jax, k: Jax, v: Jax, with_rows: bool) -> Any:
    causal, scale = settings
    block_q, block_k = _block(q), _block(k)
    return _kernels()._flash_attention_impl(
        q, k, v, None, None, with_rows, causal, scale, 1, block_q, block_k, block_k, False)


def _of_backward(q: Jax, k: Jax, v: Jax, sums: Jax, maxima: Jax, grad: Jax, shifts: Jax) -> tuple[Any, ...]:
    return q, k, v, None, None, sums[..., 0], maxima[..., 0], grad, shifts[..., 0]


def _block(x: Jax) -> int:
    return next(size for size in BLOCK_SIZES if x.shape[2] % size == 0)


@functools.cache
def _kernels() -> Any:
    from jax.experimental.pallas.ops.tpu import flash_attention
    return flash_attention
