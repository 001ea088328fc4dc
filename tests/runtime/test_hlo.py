"""Reading optimised HLO: programs small enough to count by hand."""
import numpy as np
import pytest

from vqim.runtime.chips import CHIPS
from vqim.runtime.estimate import estimate
from vqim.runtime.hlo import Module, device_groups

LOOP = """HloModule loop, is_scheduled=true, input_output_alias={ {1}: (0, {}, may-alias), {0}: (2, {}, must-alias) }

%product (p0: bf16[36,128,64], p1: bf16[256,128], p2: s32[]) -> bf16[256,64] {
  %p0 = bf16[36,128,64]{2,1,0} parameter(0)
  %p1 = bf16[256,128]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %slice = bf16[1,128,64]{2,1,0} dynamic-slice(%p0, %p2), dynamic_slice_sizes={1,128,64}
  %flat = bf16[128,64]{1,0} bitcast(%slice)
  ROOT %convolution = bf16[256,64]{1,0} convolution(%p1, %flat), dim_labels=bf_io->bf
}

%body (state: (s32[], bf16[256,128], bf16[36,128,64])) -> (s32[], bf16[256,128], bf16[36,128,64]) {
  %state = (s32[], bf16[256,128]{1,0}, bf16[36,128,64]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[256,128]{1,0} get-tuple-element(%state), index=1
  %w = bf16[36,128,64]{2,1,0} get-tuple-element(%state), index=2
  %fusion = bf16[256,64]{1,0} fusion(%w, %x, %i), kind=kOutput, calls=%product, \
metadata={op_name="tower.3/blocks/aten__mm.12" source_file="/a/b.py" source_line=7}, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
  %strange = bf16[256,64]{1,0} fusion(%fusion), kind=kLoop, calls=%copy, \
backend_config={"window_config":{"estimated_cycles":"9223372036854775807"}}
  ROOT %next = (s32[], bf16[256,128]{1,0}, bf16[36,128,64]{2,1,0}) tuple(%i, %x, %w)
}

%copy (c0: bf16[256,64]) -> bf16[256,64] {
  %c0 = bf16[256,64]{1,0} parameter(0)
  ROOT %same = bf16[256,64]{1,0} copy(%c0)
}

%condition (state.1: (s32[], bf16[256,128], bf16[36,128,64])) -> pred[] {
  %state.1 = (s32[], bf16[256,128]{1,0}, bf16[36,128,64]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(36)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (a: s32[], x.1: bf16[256,128], w.1: bf16[36,128,64]) -> (f32[100], f32[800], s32[]) {
  %a = s32[] parameter(0)
  %x.1 = bf16[256,128]{1,0:T(8,128)(2,1)} parameter(1)
  %w.1 = bf16[36,128,64]{2,1,0} parameter(2)
  %start = (s32[], bf16[256,128]{1,0}, bf16[36,128,64]{2,1,0}) tuple(%a, %x.1, %w.1)
  %g = f32[100]{0} constant({...})
  %reduced = f32[100]{0} all-reduce(%g), channel_id=1, \
replica_groups=[4,2]<=[2,4]T(1,0), use_global_device_ids=true, to_apply=%sum
  %gather-start = (f32[100]{0}, f32[800]{0}) all-gather-start(%reduced), channel_id=2, \
replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, use_global_device_ids=true
  %while = (s32[], bf16[256,128]{1,0}, bf16[36,128,64]{2,1,0}) while(%start), condition=%condition, body=%body
  %beside = f32[100]{0} fusion(%reduced), kind=kLoop, calls=%copy, \
backend_config={"window_config":{"estimated_cycles":"70"}}
  %gathered = f32[800]{0} all-gather-done(%gather-start)
  ROOT %result = (f32[100]{0}, f32[800]{0}, s32[]) tuple(%reduced, %gathered, %a)
}
"""


@pytest.fixture(scope="module")
def module():
    return Module(LOOP)


def test_an_update_in_place_moves_the_update_and_not_what_it_is_written_into():
    text = """HloModule update, is_scheduled=true

ENTRY %main (cache: bf16[36,8,1024], entry: bf16[36,8,1], place: s32[]) -> bf16[36,8,1024] {
  %cache = bf16[36,8,1024]{2,1,0} parameter(0)
  %entry = bf16[36,8,1]{2,1,0} parameter(1)
  %place = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %written = bf16[36,8,1024]{2,1,0} dynamic-update-slice(%cache, %entry, %zero, %zero, %place)
}
"""
    (computation, instruction), = [(name, one) for name, one, _ in Module(text).executed() if one.name == "written"]
    assert Module(text).hbm_bytes(computation, instruction) == 2 * 2 * 36 * 8


def test_the_body_of_a_loop_counts_as_often_as_its_condition_lets_it_run(module):
    runs = {instruction.name: times for _, instruction, times in module.executed()}
    assert runs["fusion"] == runs["strange"] == 36 and runs["reduced"] == 1


def test_a_64_bit_counter_is_two_words_whose_upper_one_is_compared_with_zero():
    low, high = "  %limit = u32[] constant(8)", "  %upper = u32[] constant(0)"
    words = Module(LOOP.replace("  %limit = s32[] constant(36)", f"{low}\n{high}"))
    assert {instruction.name: times for _, instruction, times in words.executed()}["fusion"] == 8


def test_a_loop_that_does_not_say_how_often_it_runs_is_refused():
    with pytest.raises(ValueError, match="the loop while does not say"):
        list(Module(LOOP.replace("constant(36)", "parameter(1)")).executed())


def test_a_known_trip_count_wins_over_the_condition():
    known = Module(LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'))
    assert {instruction.name: times for _, instruction, times in known.executed()}["fusion"] == 5


def test_a_product_in_a_fusion_has_two_operations_for_each_multiplication(module):
    fusion = module.computations["body"]["fusion"]
    assert module.flops("body", fusion) == 2 * 256 * 128 * 64


def test_of_stacked_weights_a_step_reads_its_slice(module):
    fusion = module.computations["body"]["fusion"]
    assert module.hbm_bytes("body", fusion) == 2 * (256 * 128 + 128 * 64 + 256 * 64) + 4


def test_arrays_in_other_memories_than_hbm_are_no_traffic():
    text = LOOP.replace("%x = bf16[256,128]{1,0} get", "%x = bf16[256,128]{1,0:T(8,128)S(1)} get")
    module = Module(text)
    assert module.hbm_bytes("body", module.computations["body"]["fusion"]) == 2 * (128 * 64 + 256 * 64) + 4


def test_cycles_of_an_instruction_and_none_for_the_sentinel(module):
    assert module.computations["body"]["fusion"].cycles == 1000
    assert module.computations["body"]["strange"].cycles is None


def test_an_instruction_says_its_modules_and_its_line(module):
    fusion = module.computations["body"]["fusion"]
    assert fusion.operation == "tower/blocks/aten__mm" and fusion.source == "/a/b.py:7"


def test_aliases_go_from_arguments_to_results(module):
    assert module.aliases() == {0: 1, 2: 0}


def test_collectives_have_their_bytes_and_groups(module):
    reduce, gather = module.collectives()
    assert (reduce.kind, reduce.operand_bytes, reduce.result_bytes, reduce.count) == ("all-reduce", 400, 400, 1)
    assert reduce.groups.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert (gather.kind, gather.operand_bytes, gather.result_bytes) == ("all-gather", 400, 3200)


def test_work_between_start_and_end_hides_a_collective_loops_included(module):
    reduce, gather = module.collectives()
    assert reduce.hidden_cycles == 0 and gather.hidden_cycles == 36 * 1000 + 70


SCATTER = """HloModule scatter, is_scheduled=true

%all-reduce-scatter (whole: f32[64,8]) -> f32[16,8] {
  %whole = f32[64,8]{1,0} parameter(0)
  %sum = f32[64,8]{1,0} all-reduce(%whole), replica_groups={{0,1,2,3}}, to_apply=%add
  %row = s32[] constant(0)
  ROOT %part = f32[16,8]{1,0} dynamic-slice(%sum, %row, %row), dynamic_slice_sizes={16,8}
}

ENTRY %main (g: f32[64,8]) -> f32[16,8] {
  %g = f32[64,8]{1,0} parameter(0)
  ROOT %fusion = f32[16,8]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_an_all_reduce_of_which_each_device_takes_its_slice_is_a_reduce_scatter():
    (found,) = Module(SCATTER).collectives()
    assert (found.kind, found.operand_bytes, found.result_bytes) == ("reduce-scatter", 4 * 64 * 8, 4 * 16 * 8)


OVERLAPPED = """HloModule overlapped, is_scheduled=true

%begin (w: bf16[4,64]) -> (bf16[4,64], bf16[16,64]) {
  %w = bf16[4,64]{1,0} parameter(0)
  %gather.1 = bf16[16,64]{1,0} all-gather(%w), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %begun = (bf16[4,64]{1,0}, bf16[16,64]{1,0}) custom-call(%gather.1), custom_call_target="begin"
}

%beside (w.2: bf16[4,64], x.2: f32[8,32], y.2: f32[32,128]) -> (f32[8,128], bf16[16,64]) {
  %w.2 = bf16[4,64]{1,0} parameter(0)
  %x.2 = f32[8,32]{1,0} parameter(1)
  %y.2 = f32[32,128]{1,0} parameter(2)
  %product = f32[8,128]{1,0} dot(%x.2, %y.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %gather.2 = bf16[16,64]{1,0} all-gather(%w.2), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %both = (f32[8,128]{1,0}, bf16[16,64]{1,0}) tuple(%product, %gather.2)
}

%end (w.3: bf16[4,64]) -> bf16[16,64] {
  %w.3 = bf16[4,64]{1,0} parameter(0)
  %gather.3 = bf16[16,64]{1,0} all-gather(%w.3), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %ended = bf16[16,64]{1,0} custom-call(%gather.3), custom_call_target="end"
}

ENTRY %main (w.4: bf16[4,64], x.4: f32[8,32], y.4: f32[32,128]) -> bf16[16,64] {
  %w.4 = bf16[4,64]{1,0} parameter(0)
  %x.4 = f32[8,32]{1,0} parameter(1)
  %y.4 = f32[32,128]{1,0} parameter(2)
  %started = (bf16[4,64]{1,0}, bf16[16,64]{1,0}) fusion(%w.4), kind=kCustom, calls=%begin
  %worked = (f32[8,128]{1,0}, bf16[16,64]{1,0}) fusion(%w.4, %x.4, %y.4), kind=kCustom, calls=%beside, \
backend_config={"window_config":{"estimated_cycles":"500"}}
  ROOT %out = bf16[16,64]{1,0} fusion(%w.4), kind=kCustom, calls=%end
}
"""


def test_a_collective_that_is_fused_into_products_counts_once_and_is_hidden_by_them():
    module = Module(OVERLAPPED)
    (gather,) = module.collectives()
    assert (gather.kind, gather.count, gather.operand_bytes, gather.result_bytes) == ("all-gather", 1, 512, 2048)
    assert gather.hidden_cycles == 500
    assert gather.groups.tolist() == [[0, 1, 2, 3]]


def test_products_beside_a_collective_are_work_of_their_own():
    places = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    estimated = estimate(Module(OVERLAPPED), CHIPS["v4"], (2, 2, 1), places)
    assert [(work.instruction.name, work.flops) for work in estimated.work] == [("worked", 2 * 8 * 32 * 128)]


@pytest.mark.parametrize("text, groups", [
    ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
    ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
])
def test_groups_of_devices_in_each_notation(text, groups):
    assert device_groups(f", {text}, channel_id=1").tolist() == groups


@pytest.mark.parametrize("shapes, attributes", [
    # [8, 3, 3, 16] images, 3x3 kernel, padding 1: corners see 4 of 9 taps, edges 6, the middle 9.
    (("f32[8,3,3,16]", "f32[3,3,16,32]", "f32[8,3,3,32]"), "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f"),
    # A product for each of 4 heads, as the compiler writes it: a window that meets one head at a time.
    (("f32[4,64,32]", "f32[4,32,16]", "f32[4,64,16]"),
     "window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf"),
])
def test_convolutions_count_products_with_elements_that_are_there(shapes, attributes):
    left, right, result = shapes
    module = Module(f"HloModule m\n\nENTRY %main (a: f32[], b: f32[]) -> f32[] {{\n  %a = {left} parameter(0)\n"
                    f"  %b = {right} parameter(1)\n  ROOT %c = {result} convolution(%a, %b), {attributes}\n}}\n")
    images, heads = 2 * 8 * (4 * 4 + 4 * 6 + 9) * 16 * 32, 2 * 4 * 64 * 32 * 16
    expected = images if "01io" in attributes else heads
    assert module.flops("main", module.computations["main"]["c"]) == expected


