"""Filling arrays on devices by their initial values: the one place for it."""
import functools

from vqim.contracts.runtime import Runtime
from vqim.state.leaf import Spec, State


def place(spec: Spec, seed: int, runtime: Runtime) -> State:
    """Every array of a spec, as its own `init` fills it."""
    return {name: runtime.place(name, leaf, functools.partial(leaf.init, name, leaf.shape, seed))
            for name, leaf in spec.items()}
