"""The settings of each runtime: what gin binds, without loading torch_xla."""
import dataclasses
from collections.abc import Sequence

from vqim.runtime.partition import Partition, Rule

REMAT = ("none", "products", "blocks")
"""What the backward pass of a scan makes again: nothing, all but matrix products, or all but each block's input."""


@dataclasses.dataclass(frozen=True)
class TorchSettings:
    """Settings of the torch runtime.

    Attributes:
      device: 'cpu', 'cuda', 'cuda:1' ...; None takes CUDA if there is one.
      num_threads: of a CPU; None leaves it to torch. Bit-equal restarts need the same number.
      remat: what identical blocks keep for the backward pass, which makes the rest again: 'none', all that it needs;
        'products', results of products with weights and of fused attention; 'blocks', each block's input.
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
    """Settings of the XLA runtime; the mesh axis `data` takes the devices that the others leave.

    Attributes:
      fsdp: size of the mesh axis over which parameters are cut and gathered when needed.
      tensor: size of the mesh axis over which heads and hidden features are cut.
      rules: of `vqim.runtime.partition.Partition`; none means that every device holds all of the state.
      matmul_precision: of float32 products on TPU: 'default' (one bfloat16 pass), 'high' (three) or 'highest' (six).
      remat: what identical blocks keep for the backward pass, which makes the rest again: 'none', results of products,
        GELU and softmax, so that only elementwise operations and sums are repeated; 'products', all of these but
        plain attention's products and softmax; 'blocks', each block's input.
      unroll: identical blocks are written out one after another instead of as a loop, which keeps what the backward
        pass needs in stacks. Steps of small batches are faster; compiling takes longer with every block. With remat
        'none' alone.
      attention: 'plain', products and a softmax with all logits in memory; 'flash', Pallas kernels, on TPU alone;
        'auto', flash on TPU for sequences whose length is a multiple of 128 and at least 256.
      gradient_dtype: 'float32' or 'bfloat16', in which gradients of dense layers' weights leave the products that sum
        them over a device's part of the batch, and are summed over devices; None: in the dtype of computation.
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
    """Raises ValueError unless `value` is one of the words that are allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
