"""Operations with hand-written gradients for the XLA runtime: they control what is kept, and gradients' dtype.

    I inputs of a matrix, O outputs of it, M all other positions of a batch; ... any dimensions
"""
import math
from typing import Any

import torch
import torch_xla.core.xla_model as xm
from torch import Tensor

from vqim.runtime.plain import plain_linear
from vqim.runtime.xla_scan import keep


class Linear(torch.autograd.Function):
    """`plain_linear`, with gradients of kernel and bias computed in `dtype`, so that devices sum them in this dtype.

    Devices sum over their parts of a batch, and XLA adds these sums in the dtype that it finds. A product of bfloat16
    arrays costs a TPU no more if it is written as a float32 product (TPU compiler). It uses one bfloat16 pass, which
    rounds nothing here, and its sums are always float32.
    """

    @staticmethod
    def forward(ctx: Any, x_I: Tensor, kernel_IO: Tensor, bias_O: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x_I, kernel_IO)
        ctx.dtype, ctx.bias_dtype = dtype, bias_O.dtype
        return plain_linear(x_I, kernel_IO, bias_O)

    @staticmethod
    def backward(ctx: Any, grad_O: Tensor) -> Any:
        x_I, kernel_IO = ctx.saved_tensors
        x_MI, grad_MO = (array.reshape(-1, array.shape[-1]).to(ctx.dtype) for array in (x_I, grad_O))
        grad_x_I = grad_O @ kernel_IO.to(grad_O.dtype).mT
        return grad_x_I, (x_MI.mT @ grad_MO).to(kernel_IO.dtype), grad_MO.sum(0).to(ctx.bias_dtype), None


class GeluDropout(torch.autograd.Function):
    """GELU with the error function, times 1 / (1 - rate) where `keep_mask` says and 0 elsewhere.

    Result and derivative, both with dropout, are computed together at the end of the product before them, and kept. So
    the three products that use them read plain arrays. XLA by itself would keep GELU's argument, and compute both again
    for every block of every product that needs them (docs/tpu_estimates.md).

    The error function is Abramowitz and Stegun's 7.1.26, which shares its exponential with the derivative and is within
    1.5e-7. In float32 GELU is then within 5e-7 of itself in float64, 0.5 x (1 + erf(x / sqrt(2))) only within 1.2e-6:
    for large negative x, nothing is left of 1 + erf.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep_mask: Tensor | None, rate: float) -> Tensor:
        wide = x.float()
        # P(X < x) for a normal distribution, and its derivative without a factor.
        bell = torch.exp(-0.5 * wide * wide)
        t = 1.0 / (1.0 + 0.3275911 * math.sqrt(0.5) * wide.abs())
        a1, a2, a3, a4, a5 = (0.5 * a for a in (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))
        tail = ((((a5 * t + a4) * t + a3) * t + a2) * t + a1) * t * bell
        below = torch.where(wide < 0, tail, 1.0 - tail)
        result, slope = wide * below, below + wide * (bell * (1 / math.sqrt(2 * math.pi)))
        if keep_mask is not None:
            factor = torch.where(keep_mask, torch.full((), 1.0 / (1.0 - rate), device=x.device), 0.0)
            result, slope = result * factor, slope * factor
        result, slope = keep(result.to(x.dtype)), keep(slope.to(x.dtype))
        ctx.save_for_backward(slope)
        result = result.clone()
        xm.optimization_barrier_([result])
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None
