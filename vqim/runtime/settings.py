"""The settings of each runtime: what gin binds, without loading torch_xla."""
import dataclasses
from collections.abc import Mapping, Sequence

from vqim.runtime.partition import Partition


@dataclasses.dataclass(frozen=True)
class TorchSettings:
    """Settings of the torch runtime.

    Attributes:
      device: 'cpu', 'cuda', 'cuda:1' ...; None takes CUDA if there is one.
      num_threads: of a CPU; None leaves it to torch. Bit-equal restarts need the same number.
    """

    device: str | None = None
    num_threads: int | None = None

    def __post_init__(self) -> None:
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
    """

    fsdp: int = 1
    tensor: int = 1
    rules: Sequence[tuple[str, Mapping[str, str]]] = ()
    matmul_precision: str = "default"

    def __post_init__(self) -> None:
        for name in ("fsdp", "tensor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.matmul_precision not in ("default", "high", "highest"):
            raise ValueError(
                f"matmul_precision must be 'default', 'high' or 'highest', got {self.matmul_precision!r}")
        Partition(self.rules)
