"""Fills arrays on devices with their initial values. All code that needs this uses it."""
import functools

from vqim.contracts.runtime import Runtime
from vqim.state.leaf import Spec, State


def place(spec: Spec, seed: int, runtime: Runtime) -> State:
    """Every array in a spec, filled by its own `init`."""
    return {name: runtime.place(name, leaf, functools.partial(leaf.init, name, leaf.shape, seed))
            for name, leaf in spec.items()}
