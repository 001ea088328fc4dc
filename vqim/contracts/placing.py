"""Filling arrays on devices by their initial values, and which rows of a batch are this process's."""
import functools

from vqim.contracts.runtime import Runtime
from vqim.state.leaf import Spec, State


def place(spec: Spec, seed: int, runtime: Runtime) -> State:
    """Every array in a spec, filled by its own `init`."""
    return {name: runtime.place(name, leaf, functools.partial(leaf.init, name, leaf.shape, seed))
            for name, leaf in spec.items()}


def own_rows(batch_size: int, runtime: Runtime) -> slice:
    """The rows of a whole batch that this process gives to `Runtime.put`."""
    share = batch_size // runtime.process_count
    return slice(runtime.process_index * share, (runtime.process_index + 1) * share)
