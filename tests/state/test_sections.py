"""Sections of a state: which of its arrays are a network's, and which a reader needs."""
from vqim.state import sections
from vqim.state.leaf import Leaf

SPEC = {name: Leaf(()) for name in (
    "params/net/w", "params/network/w", "ema/net/w", "statistics/net/mean", "optimizer/net/m/w", "frozen/net/w",
    "health/is_bad")}


def test_a_networks_arrays_are_its_averages_and_its_statistics():
    state = {name: name for name in SPEC}
    assert sections.network_arrays(state, "net") == {"w": "ema/net/w", "mean": "statistics/net/mean"}


def test_without_averages_a_networks_arrays_are_its_parameters():
    assert sections.network_arrays({name: name for name in SPEC}, "network") == {"w": "params/network/w"}


def test_a_reader_needs_neither_slots_nor_flags():
    assert sections.reading_spec(SPEC).keys() == SPEC.keys() - {"optimizer/net/m/w", "health/is_bad"}
