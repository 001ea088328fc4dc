"""The sections of a training state, and the one way to a trained network's arrays.

    params/<network>/...       what gradients move
    ema/<network>/...          exponential moving averages of it, where they are kept
    statistics/<network>/...   what a step moves without gradients: running means, an EMA codebook's counts
    optimizer/<network>/...    the optimizer's slots
    frozen/<name>/...          networks that are not trained here
    health/...                 flags
"""
from vqim.state.leaf import Spec, State, select


def params(network: str) -> str:
    """What the names of a network's parameters begin with."""
    return f"params/{network}/"


def ema(network: str) -> str:
    """What the names of the moving averages of a network's parameters begin with."""
    return f"ema/{network}/"


def statistics(network: str) -> str:
    """What the names of a network's statistics begin with."""
    return f"statistics/{network}/"


def optimizer(network: str) -> str:
    """What the names of the optimizer slots of a network begin with."""
    return f"optimizer/{network}/"


def frozen(name: str) -> str:
    """What the names of the arrays of a network that is not trained begin with."""
    return f"frozen/{name}/"


def network_arrays(state: State, network: str) -> State:
    """A trained network's arrays as everyone who reads it takes them, named as in its module.

    The parameters, or their moving averages where these are kept, and the statistics.
    """
    return select(state, params(network)) | select(state, ema(network)) | select(state, statistics(network))


def reading_spec(spec: Spec) -> Spec:
    """The part of a state that running its networks needs: not the optimizer's slots, and not the flags."""
    return {name: leaf for name, leaf in spec.items() if not name.startswith(("optimizer/", "health/"))}
