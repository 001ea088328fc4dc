"""Times of programs by hand: collectives over boxes of chips, kernels, and sums over loops."""
import numpy as np
import pytest

from vqim.runtime.chips import CHIPS
from vqim.runtime.estimate import HOP_SECONDS, KERNEL_EFFICIENCY, collective_seconds, estimate, kinds, peak_share
from vqim.runtime.hlo import Collective, Module

V4, V5E = CHIPS["v4"], CHIPS["v5e"]
BOX = (4, 4, 8)
PLACES = np.stack(np.meshgrid(*map(np.arange, BOX), indexing="ij"), -1).reshape(-1, 3)
EVERYONE = np.arange(128)[None]
GIGABYTE = 1e9


def seconds(kind, groups, operand, result, chip=V4, box=BOX, places=PLACES):
    return collective_seconds(Collective(kind, 1, operand, result, np.array(groups), 0.0, ""), chip, box, places)


def test_an_all_reduce_over_a_torus_keeps_its_six_links_busy():
    # 2 x 127/128 GB over 6 links of 50 GB/s; the farthest chip is 2 + 2 + 4 hops away.
    assert seconds("all-reduce", EVERYONE, GIGABYTE, GIGABYTE) == pytest.approx(2 * 127 / 128 / 300 + 8 * HOP_SECONDS)


def test_a_group_along_one_dimension_has_the_two_links_of_its_ring():
    ring = np.flatnonzero((PLACES[:, :2] == 0).all(1))
    assert seconds("all-gather", [ring], GIGABYTE / 8, GIGABYTE) == pytest.approx(7 / 8 / 100 + 4 * HOP_SECONDS)
    assert seconds("reduce-scatter", [ring], GIGABYTE, GIGABYTE / 8) == pytest.approx(7 / 8 / 100 + 4 * HOP_SECONDS)


def test_a_part_of_a_dimension_is_a_line():
    line = np.flatnonzero((PLACES[:, :2] == 0).all(1))[:4]
    assert seconds("all-gather", [line], GIGABYTE / 4, GIGABYTE) == pytest.approx(3 / 4 / 50 + 3 * HOP_SECONDS)


def test_a_v5e_slice_is_a_mesh_below_sixteen_chips_a_side():
    places = np.stack(np.meshgrid(*map(np.arange, (4, 4)), indexing="ij"), -1).reshape(-1, 2)
    got = seconds("all-reduce", np.arange(16)[None], GIGABYTE, GIGABYTE, V5E, (4, 4), places)
    assert got == pytest.approx(2 * 15 / 16 / 100 + 6 * HOP_SECONDS)


def test_a_permute_takes_as_long_as_its_longest_way():
    ring = np.flatnonzero((PLACES[:, :2] == 0).all(1))
    pairs = [[ring[0], ring[7]], [ring[0], ring[3]]]  # the first two are neighbours around the ring
    assert seconds("collective-permute", pairs, GIGABYTE, GIGABYTE) == pytest.approx(3 * (1 / 50 + HOP_SECONDS))


def test_a_device_by_itself_exchanges_nothing():
    assert seconds("all-reduce", [[3]], GIGABYTE, GIGABYTE) == 0


PROGRAM = """HloModule program, is_scheduled=true

ENTRY %main (q: bf16[2,16,1024,64]) -> bf16[2,16,1024,64] {
  %q = bf16[2,16,1024,64]{3,2,1,0} parameter(0)
  %rows = f32[1024]{0} constant({...})
  %known = f32[1024]{0} negate(%rows), backend_config={"window_config":{"estimated_cycles":"1050000"}}
  %unknown = f32[300000000]{0} sort(%known), dimensions={0}
  %forward = bf16[2,16,1024,64]{3,2,1,0} custom-call(%q, %q, %q), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"TUw=","cost_estimate":{"flops":"5000000000","transcendentals":"7","bytes_accessed":"4"}}}
  %moves = bf16[2,16,1024,64]{3,2,1,0} custom-call(%q), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"TUw=","cost_estimate":{"flops":"0","bytes_accessed":"12000"}}}
  %reduced = f32[25000000]{0} all-reduce(%unknown), replica_groups={{0,1}}, to_apply=%sum
  ROOT %out = bf16[2,16,1024,64]{3,2,1,0} bitcast(%forward)
}
"""


@pytest.fixture(scope="module")
def found():
    return estimate(Module(PROGRAM), V4, BOX, PLACES)


def test_cycles_are_of_the_chips_clock(found):
    assert found.seconds_by("compiler") == pytest.approx(1e-3)


def test_what_has_no_cycles_takes_as_long_as_its_traffic(found):
    assert found.seconds_by("bytes") == pytest.approx((4 * 3e8 + 4 * 1024) / 1200e9)


def test_a_kernel_takes_its_stated_products_at_the_share_of_peak_plus_its_traffic(found):
    assert found.flops == 5e9
    assert found.seconds_by("kernel") == pytest.approx(5e9 / (275e12 * KERNEL_EFFICIENCY) + 12000 / 1200e9)


def test_a_step_is_its_work_and_the_collectives_that_nothing_hides(found):
    (exchange,) = found.exchanges
    work = sum(found.seconds_by(source) for source in ("compiler", "bytes", "kernel"))
    assert exchange.exposed_seconds == exchange.seconds > 0
    assert found.step_seconds == pytest.approx(work + exchange.seconds)


def test_the_share_of_peak_is_of_all_chips():
    assert peak_share(275e12 * 128, 2.0, V4, 128) == 0.5


WRITTEN_OUT = """HloModule program, is_scheduled=true

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %one = f32[4]{0} negate(%x), metadata={op_name="blocks/negate"}, backend_config={"estimated_cycles":"1050"}
  %other = f32[4]{0} exponential(%one), metadata={op_name="head/exp"}, backend_config={"estimated_cycles":"2100"}
  %nameless = f32[4]{0} sine(%other), backend_config={"estimated_cycles":"1000"}
  %too = f32[4]{0} cosine(%nameless), backend_config={"estimated_cycles":"900"}
  ROOT %two = f32[4]{0} negate(%too), metadata={op_name="blocks/negate"}, backend_config={"estimated_cycles":"2000"}
}
"""


def test_work_of_blocks_that_are_written_out_is_listed_as_one_kind():
    work = estimate(Module(WRITTEN_OUT), V4, BOX, PLACES).work
    listed = [(kind.instruction.name, kind.count, round(kind.seconds * V4.hertz)) for kind in kinds(work)]
    assert listed == [("two", 2, 3050), ("other", 1, 2100), ("nameless", 1, 1000), ("too", 1, 900)]
