"""A network that is not trained.

    B batch, C channels, H W size of a feature map, Y classes
"""
import dataclasses
from typing import Any, Protocol

from torch import Tensor

from vqim.state.leaf import Spec


@dataclasses.dataclass(frozen=True)
class Classified:
    """What a frozen classifier of images gives.

    Attributes:
      maps: feature maps [B, C, H, W] in the context's dtype, the last ones last.
      logits_BY: float32 logits of the classes.
    """

    maps: tuple[Tensor, ...]
    logits_BY: Tensor


class Frozen(Protocol):
    """Arrays that no step changes, and the function computed with them: VGG16, LPIPS, another run's tokenizer ...

    The state stores the arrays once for each name: equal instances (`==`) under one name share them.
    """

    def init_spec(self) -> Spec:
        """Its arrays. `saved=False` where a permanent file has them, so that checkpoints need not store them."""
        ...

    def __call__(self, *inputs: Any, **context: Any) -> Any:
        """network(arrays, inputs ..., context=context) computes the outputs; arrays are named as in `init_spec`."""
        ...


def merge_frozen(users: dict[str, dict[str, Frozen]]) -> dict[str, Frozen]:
    """The frozen networks of several users, each once, by name.

    Args:
      users: for each user, such as a loss term, its networks by name.

    Raises:
      ValueError: two users give the same name to different networks.
    """
    merged: dict[str, Frozen] = {}
    for user, networks in users.items():
        for name, network in networks.items():
            if merged.setdefault(name, network) != network:
                raise ValueError(f"{user}: the name {name!r} is taken by another frozen network, {merged[name]!r}; "
                                 "networks that differ need names that differ")
    return merged
