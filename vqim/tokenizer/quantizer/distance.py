"""Distances between latents and codes.

    V codes, Z their dimensions
"""
from torch import Tensor

from vqim.contracts.context import Kernels


def relative_distance(z_Z: Tensor, codes_VZ: Tensor, kernels: Kernels) -> Tensor:
    """|z - e|^2 without |z|^2, which is the same for every code: float32 [..., Z] and [V, Z] to [..., V].

    The product is `precise_matmul`: a TPU's default rounds factors to bfloat16, and would often find another code.
    """
    return codes_VZ.square().sum(-1) - kernels.precise_matmul(z_Z, 2 * codes_VZ.mT)
