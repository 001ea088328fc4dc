"""The XLA runtime on one device, and on eight as data = 2, fsdp = 2, tensor = 2."""
import ml_dtypes
import numpy as np
import pytest

from tests.support.processes import run_on_xla

pytest.importorskip("torch_xla")
MESHES = {"one": (1, 1, 1), "eight": (8, 2, 2)}
SHAPES = {"in_and_out": (3, 4, 6), "only_in": (4, 6), "whole": (5,), "scalar": (), "bool": (2,)}
COUNTED = ["in_and_out", "only_in", "whole", "scalar"]
KEYS = (0, 1, -7)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory, results = tmp_path_factory.mktemp("xla"), {}
    for mesh, (num_devices, fsdp, tensor) in MESHES.items():
        path = directory / f"{mesh}.npz"
        run_on_xla("tests.runtime.xla_checks", fsdp, tensor, path, num_devices=num_devices, flags=None)
        results[mesh] = dict(np.load(path))
    return results


@pytest.fixture(params=MESHES)
def on(request, results):
    """The results on each mesh."""
    return results[request.param]


def counted(name, plus=0):
    """0, 1, 2 ... in the shape of an array."""
    array = np.arange(np.prod(SHAPES[name], dtype=int)).reshape(SHAPES[name]) + plus
    return array.astype(ml_dtypes.bfloat16).view(np.uint16) if name == "whole" else array


@pytest.mark.parametrize("name", SHAPES)
def test_shards_cover_an_array_once_with_the_values_that_were_placed(on, name):
    assert (on[f"times before {name}"] == 1).all() and (on[f"before {name}"] == counted(name)).all()


@pytest.mark.parametrize("name", COUNTED)
def test_updates_in_place_are_seen_in_the_state_and_not_in_copies_made_before(on, name):
    assert (on[f"times after {name}"] == 1).all() and (on[f"after {name}"] == counted(name, plus=4)).all()
    assert (on[f"before {name}"] == counted(name)).all()


def test_an_array_is_cut_as_the_rules_say_before_and_after_an_update(results):
    expected = {"in_and_out": 4, "only_in": 2, "whole": 1, "scalar": 1, "bool": 1}
    for when in ("parts", "parts after"):
        assert {name: int(results["eight"][f"{when} {name}"]) for name in SHAPES} == expected


def test_a_part_that_several_devices_hold_is_filled_once(results):
    expected = {"in_and_out": 4, "only_in": 2, "whole": 1, "scalar": 1, "bool": 1}
    assert {name: int(results["eight"][f"times filled {name}"]) for name in SHAPES} == expected


def test_what_a_program_updates_takes_the_memory_of_its_input(on):
    assert on["updated in place"] == len(COUNTED)


def test_a_program_is_compiled_once_whatever_else_is_alive(on):
    assert len(set(on["compilations"])) == 1
    assert on["returned"].tolist() == [10, 20, 30, 40]


def test_scalars_are_data_of_a_program_also_where_they_are_0_or_1_or_equal(on):
    assert len(set(on["scalar compilations"])) == 1
    assert on["scalars"].tolist() == [3.0, 4.25, 5.5, 6.0625, 6.75, 2.125]


def test_batches_come_back_whole(on):
    assert (on["batch images"] == np.arange(48, dtype=np.uint8).reshape(8, 2, 3)).all()
    assert (on["batch labels"] == np.arange(8)).all() and (on["batch valid"] == (np.arange(8) % 3 == 0)).all()
    assert (on["batch tokens"] == np.arange(16).reshape(8, 2)).all() and on["batch sum"] == np.arange(48).sum()


def test_fetching_results_compiles_nothing(on):
    assert on["compilations by fetch"] == 0


def test_an_array_made_on_the_devices_is_cut_over_those_that_share_a_batch(results):
    assert int(results["eight"]["parts cut"]) == int(results["eight"]["num_batch_shards"]) == 4
    assert (results["eight"]["times cut"] == 1).all() and not results["eight"]["cut"].any()


def test_the_axis_data_takes_the_devices_that_the_others_leave(results):
    assert results["one"]["mesh"].tolist() == [1, 1, 1] and results["eight"]["mesh"].tolist() == [2, 2, 2]


def test_devices_may_take_other_places_on_the_mesh(results):
    rows = np.arange(24, dtype=np.float32).reshape(8, 3)
    for name in ("rows of two hosts", "shards of two hosts"):
        np.testing.assert_array_equal(results["eight"][name], rows)
    assert (results["eight"]["times of two hosts"] == 1).all()
    np.testing.assert_array_equal(results["eight"]["placed on two hosts"], counted("in_and_out"))


@pytest.mark.parametrize("what, message", [
    ("refused batch", "batch size must be a multiple of 4, .* x has 6"),
    ("refused mesh", "fsdp x tensor must divide the number of devices, 8; got fsdp 3 and tensor 1"),
    ("refused leaf", r"rule 'only_in' cuts axis 'in' of only_in \(3, 6\)"),
])
def test_what_does_not_fit_the_mesh_is_refused(results, what, message):
    with pytest.raises(ValueError, match=message):
        raise ValueError(str(results["eight"][what]))


@pytest.mark.parametrize("name", ["uniform", "keep"])
@pytest.mark.parametrize("key", KEYS)
def test_random_draws_do_not_depend_on_the_mesh(results, name, key):
    assert (results["one"][f"{name} {key}"] == results["eight"][f"{name} {key}"]).all()


def test_a_draw_without_dimensions_depends_on_the_key_alone(results):
    assert results["one"]["uniform scalar"] == results["eight"]["uniform scalar"]


@pytest.mark.parametrize("key", KEYS)
def test_uniform_draws_fill_the_unit_interval_evenly(results, key):
    draws = results["one"][f"uniform {key}"].astype(np.float64)
    n = draws.size
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 4 * (1 / 12 / n) ** 0.5
    counts, _ = np.histogram(draws, 64, (0, 1))
    chi2 = ((counts - n / 64) ** 2 / (n / 64)).sum()
    assert abs(chi2 - 63) < 4 * (2 * 63) ** 0.5
    bits = (draws * 2**24).astype(np.int64)[..., None] >> np.arange(24) & 1
    assert np.abs(bits.reshape(-1, 24).mean(0) - 0.5).max() < 4.5 * (0.25 / n) ** 0.5


@pytest.mark.parametrize("key", KEYS)
def test_the_share_that_dropout_keeps_is_one_minus_the_rate(results, key):
    keep = results["one"][f"keep {key}"]
    assert set(np.unique(keep)) == {0, 1}
    assert abs(keep.mean() - 0.7) < 4 * (0.21 / keep.size) ** 0.5


def test_draws_of_different_keys_places_and_rows_are_uncorrelated(results):
    first, second, third = (results["one"][f"uniform {key}"].astype(np.float64) - 0.5 for key in KEYS)
    pairs = [(first, second), (first, third), (second, third)]
    for draws in (first, second, third):
        # Neighbours and neighbours but one along each dimension, and powers of two, where counters repeat their bits.
        pairs += [(np.roll(draws, shift, axis), draws) for axis in range(3) for shift in (1, 2, 4)]
    n = first.size
    correlations = [(a * b).mean() * 12 for a, b in pairs]
    assert np.abs(correlations).max() < 4 / n**0.5
