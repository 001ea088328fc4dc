"""What one forward pass is given besides arrays: where it runs, in which precision, with which randomness.

Models are plain functions of (parameters, inputs, context). Whatever differs between a TPU and a laptop
(a scan or a loop over layers, the attention kernel, how random bits are made) is a method of `Kernels`, and a
runtime supplies it.

    B batch, T queries, S keys, N heads, H head dimension, L layers; I inputs of a matrix, O outputs of it
"""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from vqim.state.random import fold_key


class Kernels(Protocol):
    """The operations that each runtime does in its own way; `vqim.runtime` has them."""

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

    def gelu_dropout(self, x: Tensor, key: Tensor | None, rate: float) -> Tensor:
        """GELU with the error function, then dropout by `keep_mask`; without a key no dropout."""
        ...

    def precise_matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b of float32 arrays as exact as float32 is, whatever the precision of other products; no gradient."""
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
      dtype: of matrix products and activations; softmax, norms and losses are float32 whatever it is.
      key: int32 scalar from which all randomness of the pass is derived; None in evaluation, where nothing is random.
      scalars: numbers that change from step to step, such as a temperature: float32 scalars by `part/name`.
      step_key: like `key`, but the same in all micro-batches of a step: for draws that they have to agree on.
      micro_batch: the number of this micro-batch in its step, and how many there are.
    """

    kernels: Kernels
    dtype: torch.dtype = torch.float32
    key: Tensor | None = None
    scalars: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    step_key: Tensor | None = None
    micro_batch: tuple[int, int] = (0, 1)

    def fold(self, purpose: str | Tensor) -> "Context":
        """The same context for one purpose: a part's name, a word, or a layer's number as an int32 tensor.

        It has keys of its own, and of the scalars those that are called `purpose/...`, by the rest of their names.
        """
        key, step_key = (None if k is None else fold_key(k, purpose) for k in (self.key, self.step_key))
        scalars = self.scalars
        if isinstance(purpose, str):
            part = f"{purpose}/"
            scalars = {name.removeprefix(part): value for name, value in scalars.items() if name.startswith(part)}
        return dataclasses.replace(self, key=key, step_key=step_key, scalars=scalars)

    def evaluation(self) -> "Context":
        """On the same runtime, in float32 and without randomness: how networks that are not trained compute."""
        return Context(self.kernels)


@runtime_checkable
class Scheduled(Protocol):
    """A part of a network with numbers that change from step to step; its context has them as `scalars`."""

    def host_scalars(self, step: int) -> dict[str, float]:
        """The numbers of one step, by name."""
        ...


def scheduled_scalars(step: int, **parts: Any) -> dict[str, float]:
    """The numbers of those parts that have any, named as `Context.fold(part)` looks for them."""
    return {f"{part}/{name}": value for part, component in parts.items() if isinstance(component, Scheduled)
            for name, value in component.host_scalars(step).items()}
