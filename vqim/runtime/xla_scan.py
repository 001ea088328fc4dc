"""Runs identical layers as one loop in the XLA program, whose size then does not depend on the number of layers.

torch_xla's public `scan` differentiates its body with AOTAutograd, which traces a body again at each call, keeps a cast
copy of every layer's weights for the backward pass, and needs jax. Here autograd runs inside the body of the backward
loop: it repeats the body's forward pass, replaces results by those that the forward loop kept, and asks for gradients.
Operations that become unnecessary are not compiled, since torch_xla lowers only what outputs depend on.

To know before: torch_xla records operations and compiles them later, so "running" a body here means recording it once
for all layers; `_scan_impl_flat` is torch_xla's own loop without gradients. Read `xla_scan` (the contract) first, then
`_Scan.forward` and `_Scan.backward` (the two loops), then `_Record` and `_Replay` (how kept results go from the first
loop to the second). `_Unfilled` only saves time.
"""
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch_xla.experimental.scan import _scan_impl_flat

from vqim.runtime.plain import PRODUCTS

Flat = Sequence[Tensor]
FlatBody = Callable[[Tensor, Flat], tuple[Tensor, Flat]]
Kept = Collection[Any]
Allocate = Callable[[int, tuple[int, ...], Tensor], Tensor]


@torch.library.custom_op("vqim::keep", mutates_args=())
def keep(x: Tensor) -> Tensor:
    """The identity. Its result is kept for the backward pass with all policies except 'blocks'."""
    return x.clone()


_AT_PRODUCTS = frozenset({*PRODUCTS, torch.ops.vqim.keep.default})
KEPT = {
    "none": _AT_PRODUCTS | {
        torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default, torch.ops.aten._softmax.default},
    "products": _AT_PRODUCTS,
    "blocks": frozenset(),
}
"""Operations whose results the forward loop keeps, by policy; XLA drops those that the backward pass does not read.

Operations that 'none' does not keep cost little when repeated: casts and elementwise operations become part of the
fusions that read them, and dropout's masks and the two sums over a row in a normalisation are cheaper to compute than
to keep.
"""


def xla_scan(
    body: Callable[[Tensor, Any], tuple[Tensor, Any]], carry: Tensor, inputs: Any, *,
    remat: str, place: Callable[[Tensor], None], allocate: Allocate | None = None,
) -> tuple[Tensor, Any]:
    """A loop with jax.lax.scan's contract, and with gradients.

    Args:
      body: a pure function. Tensors that it captures become arguments of the loop, without gradients.
      carry: the first carry, with the dtype and shape of the body's first result.
      inputs: a nested dict of tensors [layers, ...].
      remat: the name of a policy in `KEPT`.
      place: annotates a carry, or the gradient of one, with how it is cut over the mesh. Without it, XLA may cut
        activations like a neighbouring weight, and gather them in every layer.
      allocate: makes an array [layers, B, ...] with any values, from a number of its own, its shape, and a tensor with
        its dtype that is cut like a carry. Without it, what the backward pass needs is written into zeros.
    """
    leaves, tree = pytree.tree_flatten(inputs)
    output_tree: list[pytree.TreeSpec] = []

    def flat_body(carry: Tensor, inputs: Flat) -> tuple[Tensor, Flat]:
        carry, outputs = body(carry, pytree.tree_unflatten(list(inputs), tree))
        flat, spec = pytree.tree_flatten(outputs)
        output_tree[:] = [spec]
        return carry, [output for output in flat if output is not None]

    if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in (carry, *leaves)):
        carry, *outputs = _Scan.apply(flat_body, KEPT[remat], place, allocate, carry, *leaves)
    else:
        def step(carries: Flat, inputs: Flat) -> tuple[Flat, Flat]:
            carry, outputs = flat_body(carries[0], inputs)
            place(carry)
            return [carry], outputs

        with torch.no_grad():
            (carry,), outputs = _scan_impl_flat(step, [carry], leaves)
    (spec,) = output_tree
    return carry, pytree.tree_unflatten(outputs, spec) if outputs else None


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, body: FlatBody, kept: Kept, place: Callable[[Tensor], None], allocate: Allocate | None,
        carry: Tensor, *inputs: Tensor,
    ) -> Any:
        needed = [tensor.requires_grad for tensor in inputs]
        num_outputs = 0

        def step(carries: Flat, inputs: Flat) -> tuple[Flat, Flat]:
            nonlocal num_outputs
            place(carries[0])
            with torch.enable_grad(), _Record(kept) as record:
                after, outputs = body(_leaf(carries[0], True), list(map(_leaf, inputs, needed)))
            num_outputs, after = len(outputs), after.detach()
            place(after)
            unfilled.start()
            return [after], [*(output.detach() for output in outputs), carries[0], *record.saved]

        unfilled = _Unfilled(carry, allocate)
        with unfilled:
            (after,), stacked = _scan_impl_flat(step, [carry], list(inputs))
        ctx.body, ctx.kept, ctx.place, ctx.needed = body, kept, place, needed
        ctx.save_for_backward(*inputs, *stacked[num_outputs:])
        ctx.set_materialize_grads(False)
        return after, *stacked[:num_outputs]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_after: Tensor | None, *grad_outputs: Tensor | None) -> Any:
        num_inputs = len(ctx.needed)
        inputs, carries, saved = (
            ctx.saved_tensors[:num_inputs], ctx.saved_tensors[num_inputs], ctx.saved_tensors[num_inputs + 1:])
        given = [i for i, grad in enumerate(grad_outputs) if grad is not None]
        if grad_after is None:
            grad_after = torch.zeros_like(carries[0])

        def step(grads: Flat, slices: Flat) -> tuple[Flat, Flat]:
            ctx.place(slices[0])
            ctx.place(grads[0])
            carry, slices = _leaf(slices[0], True), slices[1:]
            arguments = list(map(_leaf, slices[:num_inputs], ctx.needed))
            replayed, grad_outputs = slices[num_inputs:len(slices) - len(given)], slices[len(slices) - len(given):]
            with torch.enable_grad(), _Replay(ctx.kept, replayed):
                after, outputs = ctx.body(carry, arguments)
            wanted = [carry, *(argument for argument in arguments if argument.requires_grad)]
            grad_carry, *found = torch.autograd.grad(
                [after, *(outputs[i] for i in given)], wanted, [grads[0], *grad_outputs], materialize_grads=True)
            ctx.place(grad_carry)
            return [grad_carry], found

        slices = [carries, *inputs, *saved, *(grad_outputs[i] for i in given)]
        (grad_carry,), found = _scan_impl_flat(step, [grad_after], slices, reverse=True)
        grads = iter(found)
        return None, None, None, None, grad_carry, *(next(grads) if needs else None for needs in ctx.needed)


class _Unfilled(TorchFunctionMode):
    """Saves torch_xla from filling stacks with zeros that its loop then overwrites.

    torch_xla makes these stacks after it has traced the body. The saving covers stacks whose slices are [B, ...] or
    [B * T, ...], cut like the carry [B, T, ...]; these are nearly all.
    """

    def __init__(self, carry: Tensor, allocate: Allocate | None):
        super().__init__()
        self.carry, self.allocate, self.started, self.count = carry, allocate, False, 0

    def start(self) -> None:
        self.started = True

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.started and self.allocate and function is torch.zeros and kwargs.get("dtype") == self.carry.dtype:
            (shape,) = args
            if len(shape) > 1 and shape[1] in (self.carry.shape[0], self.carry.shape[0] * self.carry.shape[1]):
                self.count += 1
                return self.allocate(self.count, shape, self.carry)
        return function(*args, **kwargs)


class _Record(TorchDispatchMode):
    """Records the results of the operations in `kept`, in their order."""

    def __init__(self, kept: Kept):
        super().__init__()
        self.kept = kept
        self.saved: list[Tensor] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = operation(*args, **(kwargs or {}))
        if operation in self.kept:
            self.saved += [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]
        return results


class _Replay(TorchDispatchMode):
    """Replaces the results of these operations by those that `_Record` recorded."""

    def __init__(self, kept: Kept, saved: Flat):
        super().__init__()
        # Dispatch modes run below functionalisation, which wraps every torch_xla tensor.
        self.kept, self.saved = kept, map(torch._from_functional_tensor, saved)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = operation(*args, **(kwargs or {}))
        if operation not in self.kept:
            return results
        return pytree.tree_map_only(Tensor, lambda _: next(self.saved), results)


def _leaf(tensor: Tensor, needs_grad: bool) -> Tensor:
    return tensor.detach().requires_grad_(needs_grad)
