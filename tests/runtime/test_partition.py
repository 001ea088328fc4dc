import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqim.optim.adafactor import Adafactor
from vqim.runtime.partition import MESH_AXES, Partition, part_of
from vqim.runtime.settings import XlaSettings
from vqim.state.leaf import Leaf, prefixed

MESH = {"data": 2, "fsdp": 4, "tensor": 2}
KERNEL = Leaf((3, 64, 32), axes=("layers", "in", "out"))
RULES = (("query/kernel", {"in": "fsdp", "out": "tensor"}), ("kernel", {"out": "fsdp"}))


def test_a_rule_names_axes_of_the_array_and_the_layers_stay_whole():
    assert Partition(RULES).spec("params/prior/query/kernel", KERNEL, MESH) == (None, "fsdp", "tensor")


def test_the_first_rule_that_is_found_in_the_name_decides():
    assert Partition(RULES).spec("params/prior/key/kernel", KERNEL, MESH) == (None, None, "fsdp")


def test_an_array_without_a_rule_is_whole_everywhere():
    assert Partition(RULES).spec("params/prior/bias", Leaf((3, 32), axes=("layers", "features")), MESH) == (None, None)


def test_a_scalar_that_a_rule_matches_is_whole():
    assert Partition([("step", {"in": "fsdp"})]).spec("step", Leaf(()), MESH) == ()


def test_slots_of_an_optimizer_are_cut_like_their_parameter_where_they_have_its_axes():
    partition = Partition([("^params/prior/query/kernel$", {"in": "fsdp", "out": "tensor"})])
    slots = prefixed("optimizer/prior/", Adafactor(min_factored_size=16).init_spec({"query/kernel": KERNEL}))
    by_axes = {leaf.axes: partition.spec(name, leaf, MESH) for name, leaf in slots.items()}
    assert by_axes == {
        ("layers", "in", "out"): (None, "fsdp", "tensor"),  # the first moment
        ("layers", "in"): (None, "fsdp"),
        ("layers", "out"): (None, "tensor"),  # its scales and the factors of the second moment
    }


def test_a_rule_for_one_network_leaves_the_slots_of_another_alone():
    partition = Partition([("params/prior/", {"in": "fsdp"})])
    assert partition.spec("optimizer/prior/m/kernel", KERNEL, MESH) == (None, "fsdp", None)
    assert partition.spec("optimizer/tokenizer/m/kernel", KERNEL, MESH) == (None, None, None)


def test_an_uneven_cut_is_refused_with_the_rule_and_the_array():
    with pytest.raises(ValueError, match=r"rule 'query/kernel' cuts axis 'in' of params/query/kernel \(3, 62, 32\) "
                                         r"over 'fsdp' of the mesh, but 62 is not a multiple of 4"):
        Partition(RULES).spec("params/query/kernel", Leaf((3, 62, 32), axes=("layers", "in", "out")), MESH)


def test_two_dimensions_over_one_mesh_axis_are_refused_with_the_rule_and_the_array():
    with pytest.raises(ValueError, match="rule 'kernel' cuts params/kernel .* twice over one mesh axis"):
        Partition([("kernel", {"in": "fsdp", "out": "fsdp"})]).spec("params/kernel", KERNEL, MESH)


def test_a_rule_may_cut_one_axis_over_several_of_the_mesh():
    rules = [("kernel", {"out": ["tensor", "fsdp"]})]
    assert Partition(rules).spec("params/kernel", KERNEL, MESH) == (None, None, ("tensor", "fsdp"))


def test_an_axis_cut_by_several_mesh_axes_is_refused_unless_their_product_divides_it():
    with pytest.raises(ValueError, match=r"over \('tensor', 'fsdp'\) of the mesh, but 12 is not a multiple of 8"):
        Partition([("kernel", {"out": ("tensor", "fsdp")})]).spec(
            "params/kernel", Leaf((3, 64, 12), axes=("layers", "in", "out")), MESH)


@pytest.mark.parametrize("rule", [
    ("kernel", {"in": "model"}), ("kernel", {"layers": "fsdp"}), ("kernel(", {"in": "fsdp"}), ("kernel", {"in": ()}),
    ("kernel", {"in": ("fsdp", "model")})])
def test_settings_refuse_rules_that_no_mesh_can_have(rule):
    with pytest.raises(ValueError, match="rules"):
        XlaSettings(rules=[rule])


@pytest.mark.parametrize("setting", [{"fsdp": 0}, {"tensor": -1}, {"matmul_precision": "low"}])
def test_settings_refuse_values_out_of_range(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        XlaSettings(**setting)


@given(
    mesh=st.fixed_dictionaries({axis: st.integers(1, 4) for axis in MESH_AXES}),
    cuts=st.permutations(MESH_AXES), sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    split=st.integers(0, 3))
def test_the_parts_of_all_devices_are_the_array_each_as_often_as_there_are_copies(mesh, cuts, sizes, split):
    spec = (tuple(cuts[:split]), cuts[split]) if split < 3 else (tuple(cuts), None)
    counts = [int(np.prod([mesh[axis] for axis in cut])) if isinstance(cut, tuple) else mesh.get(cut, 1)
              for cut in spec]
    shape = tuple(size * count for size, count in zip(sizes, counts, strict=True))
    times = np.zeros(shape, int)
    for place in np.ndindex(*mesh.values()):
        part = part_of(shape, spec, mesh, dict(zip(mesh, place, strict=True)))
        assert times[part].shape == sizes
        times[part] += 1
    assert (times == np.prod(list(mesh.values())) // np.prod(counts)).all()


def test_the_first_of_several_mesh_axes_makes_the_largest_pieces():
    starts = [part_of((8,), (("data", "fsdp"),), MESH, {"data": d, "fsdp": f, "tensor": 0})[0].start
              for d in range(2) for f in range(4)]
    assert starts == list(range(8))
