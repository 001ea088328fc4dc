"""Products of a few rows with a matrix of 8-bit integers, on a CPU: a quarter of the memory of float32 is read.

    I inputs of a matrix, O outputs of a matrix, R rows
"""
from typing import Any

import torch
from torch import Tensor

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
    """x @ kernel in float32, [..., O]; each row of x is rounded to 7 bits by its own scale.

    FBGEMM takes one scale for all rows, from the smallest to the largest value. Rows whose largest value is 1, and one
    more row with -1 and 1, always give the same one: so no row depends on the others, nor an image on its batch.
    """
    x_RI = x_I.reshape(-1, x_I.shape[-1]).float()
    scale_R1 = x_RI.abs().amax(1, keepdim=True).clamp_min(_SMALLEST)
    bounds_1I = x_RI.new_zeros(1, x_RI.shape[1])
    bounds_1I[0, 0], bounds_1I[0, -1] = -1.0, 1.0
    # 7 bits: sums of two products of 8 would overflow the 16 bits that AVX2 has for them.
    y_RO = torch.ops.quantized.linear_dynamic(torch.cat([x_RI / scale_R1, bounds_1I]), kernel, True)[:-1] * scale_R1
    return y_RO.reshape(*x_I.shape[:-1], -1)
