"""The sections of a training state, and the one way to a trained network's arrays.

    params/<network>/...       what gradients change
    ema/<network>/...          exponential moving averages of the parameters, where they are kept
    statistics/<network>/...   what a step changes without gradients: running means, an EMA codebook's counts
    optimizer/<network>/...    the optimizer's slots
    frozen/<name>/...          networks that are not trained here
    health/...                 flags
"""
import re

from vqim.state.leaf import Spec, State, select


def params(network: str) -> str:
    """The prefix of the names of a network's parameters."""
    return f"params/{network}/"


def ema(network: str) -> str:
    """The prefix of the names of the moving averages of a network's parameters."""
    return f"ema/{network}/"


def statistics(network: str) -> str:
    """The prefix of the names of a network's statistics."""
    return f"statistics/{network}/"


def optimizer(network: str) -> str:
    """The prefix of the names of a network's optimizer slots."""
    return f"optimizer/{network}/"


def frozen(name: str) -> str:
    """The prefix of the names of a frozen network's arrays."""
    return f"frozen/{name}/"


def network_arrays(state: State, network: str) -> State:
    """The arrays with which a trained network is evaluated, named as in its module.

    They are the parameters, or their moving averages where these are kept, and the statistics.
    """
    return select(state, params(network)) | select(state, ema(network)) | select(state, statistics(network))


READING = "^(?!optimizer/|health/)"
"""Pattern for the names of the arrays in `reading_spec`."""


def reading_spec(spec: Spec) -> Spec:
    """The part of a state that is needed to run its networks, without the optimizer's slots and the flags."""
    return {name: leaf for name, leaf in spec.items() if re.match(READING, name)}
