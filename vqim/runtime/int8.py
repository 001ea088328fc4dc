"""Products of a few rows with a matrix of 8-bit integers, on a CPU: a quarter of the memory of float32 is read.

    I inputs of a matrix, O outputs of a matrix
"""
from typing import Any

import torch
from torch import Tensor

_LEVELS = 63  # to each side of zero: sums of two products of 8-bit inputs would overflow the 16 bits that AVX2 has
_SMALLEST = 1e-30


def int8_kernel(kernel_IO: Tensor) -> Any:
    """A float32 kernel in FBGEMM's order, rounded to 8 bits with a scale for each output.

    Raises:
      ValueError: the kernel is not on a CPU.
    """
    if kernel_IO.device.type != "cpu":
        raise ValueError(f"int8 kernels need the torch runtime on a CPU, this one is on {kernel_IO.device}")
    kernel_OI = kernel_IO.mT.float().contiguous()
    scale_O = kernel_OI.abs().amax(1).clamp_min(_SMALLEST) / 127
    zeros_O = torch.zeros(len(scale_O), dtype=torch.int64)
    rounded_OI = torch.quantize_per_channel(kernel_OI, scale_O, zeros_O, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(rounded_OI, None)


def int8_linear(x_I: Tensor, kernel: Any) -> Tensor:
    """x @ kernel in float32, [..., O]; each row of x is rounded to 63 levels on each side of zero.

    FBGEMM takes one scale for all rows, so that rows come divided by their largest value: then no row depends on the
    others, nor an image on its batch.
    """
    largest_1 = x_I.abs().amax(-1, keepdim=True).clamp_min(_SMALLEST)
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        x_I / largest_1, 1 / _LEVELS, _LEVELS + 1, kernel) * largest_1
