"""The settings of each runtime, which gin binds. Does not load torch_xla."""
import dataclasses
from collections.abc import Sequence

from vqim.runtime.partition import Partition, Rule

REMAT = ("none", "products", "blocks")
"""What a scan's backward pass computes again: nothing, all but matrix products, or all but each block's input."""


@dataclasses.dataclass(frozen=True)
class TorchSettings:
    """Settings of the torch runtime.

    Attributes:
      device: 'cpu', 'cuda', 'cuda:1' ...; None takes CUDA if there is one.
      num_threads: the number of CPU threads; None lets torch decide. Bit-equal restarts need the same number.
      remat: what identical blocks keep for the backward pass, which computes the rest again. 'none' keeps all that it
        needs; 'products' the results of products with weights and of fused attention; 'blocks' only each block's input.
    """

    device: str | None = None
    num_threads: int | None = None
    remat: str = "none"

    def __post_init__(self) -> None:
        check_one_of("remat", self.remat, REMAT)
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"num_threads must be at least 1 or None, got {self.num_threads}")


@dataclasses.dataclass(frozen=True)
class XlaSettings:
    """Settings of the XLA runtime; the mesh axis `data` takes the devices that the other axes leave.

    Attributes:
      fsdp: size of the mesh axis over which parameters are cut and gathered when needed.
      tensor: size of the mesh axis over which heads and hidden features are cut.
      rules: rules for `vqim.runtime.partition.Partition`; without rules every device holds the whole state.
      matmul_precision: precision of float32 products on TPU: 'default' (one bfloat16 pass), 'high' (three) or
        'highest' (six).
      remat: what identical blocks keep for the backward pass, which computes the rest again. 'none' keeps the results
        of products, GELU and softmax, so that only elementwise operations and sums are repeated; 'products' the same
        without plain attention's products and softmax; 'blocks' only each block's input.
      unroll: whether identical blocks are written out one after another. A loop would keep what the backward pass needs
        in stacks. Unrolled steps with small batches are faster, but compiling takes longer with every block. Only with
        remat 'none'.
      attention: 'plain' for products and a softmax with all logits in memory; 'flash' for Pallas kernels, only on TPU;
        'auto' for flash on TPU if the sequence length is a multiple of 128 and at least 256, else plain.
      gradient_dtype: 'float32' or 'bfloat16': the dtype in which gradients of dense layers' weights leave the products
        over a device's part of the batch, and in which they are summed over devices. None: the dtype of computation.
    """

    fsdp: int = 1
    tensor: int = 1
    rules: Sequence[Rule] = ()
    matmul_precision: str = "default"
    remat: str = "none"
    unroll: bool = False
    attention: str = "auto"
    gradient_dtype: str | None = None

    def __post_init__(self) -> None:
        check_one_of("remat", self.remat, REMAT)
        if self.unroll and self.remat != "none":
            raise ValueError(f"unroll needs remat = 'none', got {self.remat!r}")
        check_one_of("attention", self.attention, ("auto", "plain", "flash"))
        if self.gradient_dtype is not None:
            check_one_of("gradient_dtype", self.gradient_dtype, ("float32", "bfloat16"))
        for name in ("fsdp", "tensor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_one_of("matmul_precision", self.matmul_precision, ("default", "high", "highest"))
        Partition(self.rules)


def check_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
