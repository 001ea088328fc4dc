"""Leaves: sizes, stacks, and names that are cut and joined."""
import pytest
import torch

from vqim.state.leaf import Leaf, prefixed, select


def test_every_dimension_needs_a_word():
    with pytest.raises(ValueError, match=r"a leaf of shape \(2, 3\) needs 2 axes, got \('in',\)"):
        Leaf((2, 3), axes=("in",))


def test_bytes_are_those_of_the_dtype():
    leaf = Leaf((6, 5, 4), axes=("layers", "in", "out"), dtype=torch.bfloat16)
    assert (leaf.size, leaf.num_bytes) == (120, 240)


def test_a_scalar_has_one_element():
    assert Leaf(()).size == 1


def test_stacks_are_known_by_their_first_axis():
    assert Leaf((6, 5), axes=("layers", "features")).num_layers == 6
    assert Leaf((6, 5), axes=("in", "out")).num_layers is None


def test_select_takes_what_prefixed_has_named():
    spec = {"w": Leaf(()), "b": Leaf(())}
    whole = prefixed("params/net/", spec) | prefixed("params/network/", spec)
    assert select(whole, "params/net/") == spec
