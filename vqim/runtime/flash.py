"""Flash attention on TPU: makes the kernels in `vqim.runtime.flash_kernels` operations of torch_xla, over a mesh.

Plain attention writes all T x S logits to memory, which limits the speed of long sequences. The kernels avoid it, but
they are written in jax (Pallas) and work on the arrays of one device. This file has three jobs: to lower a kernel with
jax to text that torch_xla can call (`_lowered`, `run`), to run it on every device's part of the arrays (`on_parts`),
and to connect both to autograd (`flash_attention`, `_Flash`).

To know before: jax is used only as a compiler here and never touches a device. Read `flash_attention` first, then
`on_parts` and `run`; flash_kernels.py has the mathematics, flash_blocks.py the sizes that fit the chip.

    B batch, N heads, T queries, S keys, H head dimension, E = N * H
"""
import functools
from typing import Any

import torch
import torch_xla
import torch_xla.backends
import torch_xla.distributed.spmd as xs
from einops import rearrange
from torch import Tensor
from torch_xla.experimental.custom_kernel import _extract_backend_config, to_jax_shape_dtype_struct

from vqim.runtime.xla_scan import keep

Spec = tuple[Any, ...]

def flash_attention(
    q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, *, causal: bool, mesh: xs.Mesh, spec: Spec, num_parts: int,
) -> Tensor:
    """softmax(q k^T / sqrt(H)) v without an array of [T, S]; sums of products and softmax are in float32.

    Args:
      q_BNTH: queries, with sizes on each device that `vqim.runtime.flash_blocks.choose_blocks` accepts; likewise keys
        and values.
      k_BNSH: keys.
      v_BNSH: values.
      causal: whether a query t sees only the keys s <= t.
      mesh: the mesh over which arrays are cut.
      spec: how [B, T, E] is cut: evenly, along B and E.
      num_parts: the number of parts into which the heads are cut.
    """
    # Layers before and after have heads side by side; XLA removes the two transpositions that cancel.
    arrays = [rearrange(x, "b n t h -> b t (n h)") for x in (q_BNTH, k_BNSH, v_BNSH)]
    num_heads = q_BNTH.shape[1]
    out_BTE = _Flash.apply(*arrays, (num_heads // num_parts, causal), mesh, spec)
    return rearrange(out_BTE, "b t (n h) -> b n t h", n=num_heads)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, settings: tuple[int, bool], mesh: xs.Mesh, spec: Spec,
    ) -> Tensor:
        # Keep them with their biases, or the backward pass would add the biases again.
        q, k, v = keep(q), keep(k), keep(v)
        ctx.save_for_backward(q, k, v)
        ctx.settings, ctx.mesh, ctx.spec = settings, mesh, spec
        (out,) = on_parts("attend", settings, [q, k, v], [(q.shape, spec)], mesh, spec)
        return keep(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v = ctx.saved_tensors
        results = [(x.shape, ctx.spec) for x in (q, k, v)]
        grads = on_parts("gradients", ctx.settings, [q, grad, k, v], results, ctx.mesh, ctx.spec)
        return *grads, None, None, None


def on_parts(
    kernel: str, settings: tuple[int, ...], arrays: list[Tensor], results: list[tuple[tuple[int, ...], Spec]],
    mesh: xs.Mesh, spec: Spec,
) -> list[Tensor]:
    """Runs a kernel on every device, on its parts of the arrays.

    Args:
      kernel: its name in `flash_kernels`.
      settings: its first argument.
      arrays: the arrays, all cut in the same way.
      results: the shapes of the whole results, and how they are cut.
      mesh: the mesh over which the arrays are cut.
      spec: how the arrays are cut.
    """
    if mesh.size() == 1:
        return run(kernel, settings, arrays)
    manual = torch_xla._XLAC.OpSharding([], [], [], xs.ShardingType.MANUAL)
    parts, wholes = [], []
    for array in arrays:
        part = array.clone()
        torch_xla._XLAC._xla_mark_sharding(part, mesh.get_op_sharding(spec))
        parts.append(torch_xla._XLAC._spmd_full_to_shard_shape(part))
    for part, (shape, result_spec) in zip(run(kernel, settings, parts), results, strict=True):
        torch_xla._XLAC._mark_manual_sharding(part, manual)
        wholes.append(torch_xla._XLAC._spmd_shard_to_full_shape(
            part, mesh.get_op_sharding(result_spec), shape, part.dtype))
    return wholes


def allocate(number: int, shape: tuple[int, ...], near: Tensor, mesh: xs.Mesh, spec: Spec, num_parts: int) -> Tensor:
    """An array [L, B, ...] with any values, for a program that writes all of them.

    Args:
      number: a different number for each array in a program.
      shape: the shape of the whole array.
      near: an array [B, ...] with the same dtype.
      mesh: the mesh over which arrays are cut.
      spec: how [B, ...] is cut: evenly, along B.
      num_parts: the number of parts into which B is cut.
    """
    part_shape = (shape[0], shape[1] // num_parts, *shape[2:])
    result_spec = (None, spec[0], *(None,) * (len(shape) - 2))
    (result,) = on_parts("allocate", (number, *part_shape), [near], [(shape, result_spec)], mesh, spec)
    return result


def run(kernel: str, settings: tuple[int, ...], arrays: list[Tensor]) -> list[Tensor]:
    """Runs a kernel on tensors."""
    # The kernels have two precisions for float32 products: one bfloat16 pass, or six.
    precision = "default" if torch_xla.backends.get_mat_mul_precision() == "default" else "highest"
    payload, results = _lowered(kernel, settings, tuple(map(to_jax_shape_dtype_struct, arrays)), precision)
    shapes, dtypes = zip(*((result.shape, getattr(torch, result.dtype.name)) for result in results), strict=True)
    return torch_xla._XLAC._xla_tpu_custom_call(arrays, payload, shapes, dtypes)


@functools.cache
def _lowered(
    kernel: str, settings: tuple[int, ...], shapes: tuple[Any, ...], precision: str,
) -> tuple[str, Any]:
    """The kernel in the form that the TPU compiler takes, and the shapes and dtypes of its results."""
    import jax

    from vqim.runtime import flash_kernels
    # The chips belong to torch_xla: jax only lowers kernels, and must not look for devices itself.
    jax.config.update("jax_platforms", "cpu")
    with jax.default_matmul_precision(precision):
        traced = jax.jit(getattr(flash_kernels, kernel), static_argnums=0).trace(settings, *shapes)
        module = traced.lower(lowering_platforms=("tpu",)).compiler_ir()
    return _extract_backend_config(module), traced.out_info
