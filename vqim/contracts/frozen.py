"""A network that is not trained."""
from typing import Any, Protocol

from vqim.state.leaf import Spec


class Frozen(Protocol):
    """Arrays that no step changes, and what is computed with them: VGG16, LPIPS, another run's tokenizer ...

    The state has its arrays once under each name that users give it: equal instances (`==`) under one name share them.
    """

    def init_spec(self) -> Spec:
        """Its arrays; `saved=False` where a file that stays around has them, so that checkpoints need not."""
        ...

    def __call__(self, *inputs: Any, **context: Any) -> Any:
        """network(arrays, inputs ..., context=context): what it computes, with arrays named as in `init_spec`."""
        ...


def merge_frozen(users: dict[str, dict[str, Frozen]]) -> dict[str, Frozen]:
    """The frozen networks of several users by name, each once.

    Args:
      users: for each user, such as a loss term, its networks by name.

    Raises:
      ValueError: two users mean different networks by one name.
    """
    merged: dict[str, Frozen] = {}
    for user, networks in users.items():
        for name, network in networks.items():
            if merged.setdefault(name, network) != network:
                raise ValueError(f"{user}: the name {name!r} is taken by another frozen network, {merged[name]!r}; "
                                 "networks that differ need names that differ")
    return merged
