"""Kernels in plain tensor operations, which any runtime may use.

    B batch, T queries, S keys, N heads, H head dimension; I inputs of a matrix, O outputs of a matrix
    P latents, Z their dimension, V vocabulary
"""
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

PRODUCTS = {
    torch.ops.aten.mm.default, torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
}
"""The operations that 'products' keeps: products with weights, and fused attention; not plain attention's products,
which are large."""


def plain_linear(x_I: Tensor, kernel_IO: Tensor, bias_O: Tensor) -> Tensor:
    """x @ kernel + bias in x's dtype."""
    return F.linear(x_I, kernel_IO.to(x_I.dtype).mT, bias_O.to(x_I.dtype))


def plain_attention(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, *, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(H)) v; softmax in float32, products in the inputs' dtype."""
    logits_BNTS = (q_BNTH @ k_BNSH.mT).float() * q_BNTH.shape[-1] ** -0.5
    if causal:
        t = torch.arange(q_BNTH.shape[2], device=q_BNTH.device)
        s = torch.arange(k_BNSH.shape[2], device=q_BNTH.device)
        logits_BNTS = logits_BNTS.masked_fill(s[None, :] > t[:, None], -torch.inf)
    return logits_BNTS.softmax(-1).to(v_BNSH.dtype) @ v_BNSH


def plain_cached_attention(
    q_TH: Tensor, k_1H: Tensor, v_1H: Tensor, keys_SH: Tensor, values_SH: Tensor, position: Tensor, scale: float,
) -> Tensor:
    """softmax(scale q k^T) v over a position's own key and those before it, for any dimensions before these.

    See `Kernels.cached_attention`.
    """
    num_before = keys_SH.shape[-2]
    is_later_S = torch.arange(num_before, device=q_TH.device) >= position
    before_TS = (q_TH @ keys_SH.mT).masked_fill(is_later_S, -torch.inf)
    logits_Ts = torch.cat([before_TS, q_TH @ k_1H.mT], -1).float() * scale
    before_TS, own_T1 = logits_Ts.softmax(-1).to(v_1H.dtype).split([num_before, 1], -1)
    return before_TS @ values_SH + own_T1 * v_1H


def sums_by_code(
    x_PZ: Tensor, codes_P: Tensor, vocabulary: int, matmul: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> tuple[Tensor, Tensor]:
    """`Kernels.sums_by_code` as a product, whose sums have the same order in every run."""
    chosen_PV = (codes_P[:, None] == torch.arange(vocabulary, device=codes_P.device)).float()
    return chosen_PV.sum(0), matmul(chosen_PV.mT, x_PZ)


def loop_scan(
    body: Callable[[Tensor, Any], tuple[Tensor, Any]], carry: Tensor, inputs: Any, remat: str,
) -> tuple[Tensor, Any]:
    """A Python loop over nested dicts of tensors, or of lists of their slices, with jax.lax.scan's contract.

    `remat` is `TorchSettings.remat`.
    """
    if remat != "none" and torch.is_grad_enabled():
        # No code here draws from torch's generators: see `vqim.state.random`.
        kept: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        if remat == "products":
            kept["context_fn"] = functools.partial(create_selective_checkpoint_contexts, list(PRODUCTS))
        body = functools.partial(checkpoint, body, **kept)
    outputs = []
    for part in _unstack(inputs):
        carry, output = body(carry, part)
        outputs.append(output)
    return carry, _stack(outputs)


def _unstack(tree: Any) -> list[Any]:
    if isinstance(tree, Tensor):
        return list(tree.unbind(0))
    if isinstance(tree, list):
        return tree
    parts = {name: _unstack(branch) for name, branch in tree.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def _stack(outputs: list[Any]) -> Any:
    if not outputs or outputs[0] is None:
        return None
    if isinstance(outputs[0], Tensor):
        return torch.stack(outputs)
    return {name: _stack([output[name] for output in outputs]) for name in outputs[0]}
