"""What a forward pass gets besides arrays: where it runs, in which precision, and with which randomness.

Models are plain functions of (parameters, inputs, context). `Kernels` has a method for everything that differs
between a TPU and a laptop: a scan or a loop over layers, the attention kernel, how random bits are made. Each runtime
implements these methods.

    B batch, T queries, S keys, N heads, H head dimension, D = N H, L layers; I O inputs and outputs of a matrix
    V vocabulary, P latents, Z their dimension
"""
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from vqim.state.random import fold_key


class Kernels(Protocol):
    """The operations that each runtime implements in its own way, in `vqim.runtime`."""

    def scan(
        self, body: Callable[[Tensor, Any], tuple[Tensor, Any]], carry: Tensor, inputs: Any,
    ) -> tuple[Tensor, Any]:
        """Like jax.lax.scan: `carry, y = body(carry, slice of inputs)` along the first axis of every tensor
        in the nested dict `inputs`; returns the last carry and the stacked ys (None where body gave None)."""
        ...

    def attention(self, q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, *, causal: bool) -> Tensor:
        """softmax(q k^T / sqrt(H)) v, in [B, N, T, H]; a causal query t sees the keys s <= t."""
        ...

    def linear(self, x_I: Tensor, kernel_IO: Tensor, bias_O: Tensor) -> Tensor:
        """x @ kernel + bias, in x's dtype."""
        ...

    def lay_out(self, array_L: Tensor, dtype: torch.dtype, *, is_kernel: bool, num_bytes: int = 0) -> Any:
        """One array of each of L layers as `scan`'s loops take it fastest, for many products with few rows in `dtype`.

        None where that is as it is. All kernels of the network have `num_bytes` in this dtype. With torch.int8, kernels
        are rounded to 8 bits, and the rows that `linear` multiplies with them to 7; only on a CPU. What it makes of a
        kernel only `linear` reads. There is no gradient."""
        ...

    def dropout(self, x: Tensor, key: Tensor, rate: float) -> Tensor:
        """x / (1 - rate) where `keep_mask` is True, and 0 elsewhere, in x's dtype."""
        ...

    def gelu_dropout(self, x: Tensor, key: Tensor | None, rate: float) -> Tensor:
        """GELU with the error function, then `dropout`; without a key no dropout."""
        ...

    def cross_entropy(self, logits_V: Tensor, codes: Tensor) -> Tensor:
        """-log softmax(logits) of each code, float32 of the codes' shape, in nats."""
        ...

    def empty_cache(
        self, sizes: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device,
    ) -> Tensor:
        """Zeros for keys, or values, of sizes L, B, N, S, H, in an order of its own that begins with L and B."""
        ...

    def filled(self, cache: Tensor, last: int | None) -> Tensor:
        """A cache as `cached_attention` takes it; of its entries, those after entry `last` need not be there."""
        ...

    def cached_attention(
        self, q_B1D: Tensor, k_B1D: Tensor, v_B1D: Tensor, keys: Tensor, values: Tensor, position: Tensor,
        num_heads: int,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """`attention` of one position, an integer scalar tensor, to itself and to all before it, [B, 1, D].

        `keys` and `values` are one layer's part of caches. Entries at `position` and after it are ignored: the
        position's own come as `k_B1D` and `v_B1D`. They are written into the caches at once, or come back for `write`
        to write those of all layers together."""
        ...

    def write(self, cache: Tensor, entry_LB1D: Tensor, position: Tensor) -> None:
        """Writes one position's keys, or values, as they came back from `cached_attention`, into a cache."""
        ...

    def precise_matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b of float32 arrays with full float32 accuracy, whatever the precision of other products; no gradient."""
        ...

    def sums_by_code(self, x_PZ: Tensor, codes_P: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
        """How often each code occurs, [V], and the sum of the rows that have it, [V, Z], both float32; no gradient."""
        ...

    def layer_norm(self, x_D: Tensor, gain_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
        """Layer normalisation of float32 arrays over the last dimension."""
        ...

    def keep_mask(self, key: Tensor, rate: float, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Bools, each False with probability `rate`; the same for the same key, on any mesh."""
        ...

    def uniform(self, key: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """float32 draws from U[0, 1), a function of the key alone."""
        ...


@dataclasses.dataclass(frozen=True)
class Context:
    """How one forward pass computes.

    Attributes:
      kernels: the runtime's operations.
      dtype: the dtype of matrix products and activations; softmax, norms and losses are always float32.
      key: int32 scalar from which all randomness in the pass is derived; None in evaluation, where nothing is random.
      scalars: numbers that change from step to step, such as a temperature: float32 scalars by `part/name`.
      step_key: like `key`, but the same in all micro-batches of a step, for draws on which they have to agree.
      micro_batch: the index of this micro-batch in its step, and the number of micro-batches.
      reach: in a step of a `Stepwise` prior, a number of draws, at least as many as lie before this step's: entries of
        caches that later ones would write need not be read. None where it is not known; then all are.
      evaluation_dtype: `dtype` for networks that are not trained here, such as a prior's tokenizer.
      purposes: what `fold` was given so far; keys are derived from it only where something is drawn.
    """

    kernels: Kernels
    dtype: torch.dtype = torch.float32
    key: Tensor | None = None
    scalars: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    step_key: Tensor | None = None
    micro_batch: tuple[int, int] = (0, 1)
    reach: int | None = None
    evaluation_dtype: torch.dtype = torch.float32
    purposes: tuple[str | Tensor, ...] = ()

    def fold(self, purpose: str | Tensor) -> "Context":
        """The same context for one purpose: a part's name, a word, or a layer's number as an int32 tensor.

        It draws from keys of its own. Of the scalars it keeps those named `purpose/...`, without this prefix.
        """
        scalars = self.scalars
        if isinstance(purpose, str):
            part = f"{purpose}/"
            scalars = {name.removeprefix(part): value for name, value in scalars.items() if name.startswith(part)}
        return dataclasses.replace(self, scalars=scalars, purposes=(*self.purposes, purpose))

    def draw_key(self, purpose: str) -> Tensor | None:
        """The key for one draw, an int32 scalar; None where nothing is random."""
        return self._derived(self.key, purpose)

    def step_draw_key(self, purpose: str) -> Tensor | None:
        """Like `draw_key`, but the same in all micro-batches of a step."""
        return self._derived(self.step_key, purpose)

    def _derived(self, key: Tensor | None, purpose: str) -> Tensor | None:
        return None if key is None else functools.reduce(fold_key, (*self.purposes, purpose), key)

    def evaluation(self) -> "Context":
        """The same runtime, in `evaluation_dtype` and without randomness: for networks that are not trained."""
        return Context(self.kernels, self.evaluation_dtype, evaluation_dtype=self.evaluation_dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as gin files and protocols name it: 'float32', 'bfloat16'."""
    return str(dtype).removeprefix("torch.")


@runtime_checkable
class Scheduled(Protocol):
    """A part of a network with numbers that change from step to step; it reads them from its context's `scalars`."""

    def host_scalars(self, step: int) -> dict[str, float]:
        """The numbers for one step, by name."""
        ...


def scheduled_scalars(step: int, **parts: Any) -> dict[str, float]:
    """The numbers of all parts that are `Scheduled`, named as `Context.fold(part)` looks for them."""
    return {f"{part}/{name}": value for part, component in parts.items() if isinstance(component, Scheduled)
            for name, value in component.host_scalars(step).items()}
