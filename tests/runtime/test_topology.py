"""Programs for TPU slices that are not here, compiled by libtpu in one process of its own."""
import json
import os
import subprocess
import sys

import pytest

from tests.support.processes import ROOT
from vqim.runtime import tpu_compiler
from vqim.runtime.partition import MESH_AXES, part_of


def missing():
    """Why the compiler cannot be tested; None where it can."""
    try:
        tpu_compiler.check_installed()
    except ImportError as error:
        return str(error)


needs_compiler = pytest.mark.skipif(missing() is not None, reason=f"the TPU compiler is not installed: {missing()}")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("topology") / "results.json"
    process = subprocess.run(
        [sys.executable, "-m", "tests.runtime.topology_checks", str(path)],
        cwd=ROOT, env=os.environ | {"TPU_ACCELERATOR_TYPE": "v3-8"}, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return json.loads(path.read_text())


@needs_compiler
def test_the_arrays_that_a_step_updates_and_no_others_take_their_inputs_memory(results):
    assert results["aliased"] == results["state"] and results["aliased to itself"]


@needs_compiler
def test_every_argument_is_cut_as_the_rules_say(results):
    state = {name: shape for name, shape in results["argument shapes"].items() if name in results["expected shapes"]}
    assert state == {name: results["expected shapes"][name] for name in state}
    assert set(results["state"]) <= state.keys()
    assert sum("expand/kernel" in name for name in state) >= 6  # encoder and decoder: the kernel and its two moments


@needs_compiler
def test_a_batch_is_cut_over_the_devices_that_share_it(results):
    assert results["argument shapes"]["batch/images"][0] == 8 // 2


@needs_compiler
def test_operations_name_their_modules_forward_and_backward(results):
    operations = results["operations"]
    assert any("encoder/tower/blocks" in name and not name.startswith("backward/") for name in operations)
    assert any(name.startswith("backward/") and "decoder/tower/blocks" in name for name in operations)


@needs_compiler
def test_flops_bytes_and_collectives_of_a_product_are_those_of_its_shapes(results):
    rows, inner, columns = 4096 // 4, 2048, 1024
    assert results["product flops"] == 2 * rows * inner * columns
    assert results["product arguments"] == 4 * rows * inner + 2 * inner * columns
    assert results["collectives"] == [["all-reduce", 4.0, [[0, 1, 2, 3]]]]
    assert results["fetch is refused"]


@needs_compiler
@pytest.mark.parametrize("computed, reduced, size", [
    ("bfloat16", None, 2), ("bfloat16", "bfloat16", 2), ("bfloat16", "float32", 4),
    ("float32", None, 4), ("float32", "float32", 4), ("float32", "bfloat16", 2)])
def test_gradients_are_summed_over_devices_in_the_dtype_that_is_bound(results, computed, reduced, size):
    assert results[f"reduced torch.{computed} {reduced}"] == (256 * 128 + 128) * size


@needs_compiler
def test_a_program_that_does_not_fit_says_by_how_much_and_which_arrays(results):
    used, limit, buffers = results["too large"]
    assert (used, limit) == (64, 30.75)
    assert sorted(buffers) == [["32.00G", "float32[65536, 131072]", name] for name in "ab"]


@needs_compiler
def test_a_chip_is_a_device_in_every_generation(results):
    assert results["chips"] == {"v4:4x4x8": 128, "v5e:1x1": 1, "v5e:4x8": 32, "v5p:2x2x2": 8, "v6e:8x8": 64}


@needs_compiler
def test_the_lock_of_real_chips_is_left_alone(results):
    assert results["locks"] == []


@pytest.mark.parametrize("name, message", [
    ("v7:2x2", "expected v4, v5e, v5p, v6e, a colon"), ("v4", "a colon and a shape"),
    ("v4:4x4", "slices of v4 have 3 dimensions"), ("v5e:2x2x1", "slices of v5e have 2 dimensions"),
])
def test_what_is_no_topology_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        tpu_compiler.parse_topology(name)


def test_without_the_compiler_the_error_says_what_installs_it(monkeypatch):
    monkeypatch.setattr(tpu_compiler, "version", lambda package: {"libtpu": "0.0.21"}.get(package, "0.7.1"))
    with pytest.raises(ImportError, match=r"libtpu 0.0.21. pip install 'vqim\[tpu-compile\]'"):
        tpu_compiler.check_installed()


def test_a_process_that_compiles_takes_nothing_of_a_run_on_the_same_machine():
    base = {"PATH": "/bin", "TPU_ACCELERATOR_TYPE": "v4-8", "PJRT_DEVICE": "TPU", "LIBTPU_INIT_ARGS": "--xla_tpu_a=b"}
    changed = tpu_compiler.environment(base)
    assert base["PJRT_DEVICE"] == "TPU" and "TPU_ACCELERATOR_TYPE" not in changed
    assert changed["PJRT_DEVICE"] == "CPU" and changed["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"
    assert changed["PATH"] == "/bin" and changed["LIBTPU_INIT_ARGS"] == "--xla_tpu_a=b"


MESH = {"data": 2, "fsdp": 3, "tensor": 2}


@pytest.mark.parametrize("spec", [
    ("fsdp", None, "tensor"), ("tensor", "fsdp"), (("data", "fsdp"), None), (("data", "fsdp"), "tensor"), ("data",)])
def test_shardings_in_words_put_every_part_on_the_device_that_the_runtime_puts_it(spec):
    text = tpu_compiler.sharding_text(spec, MESH)
    tiles, numbers = text.removeprefix("{devices=[").split("]")
    tiles, numbers = list(map(int, tiles.split(","))), numbers.rstrip("}").split(" ")
    copies = tiles.pop() if "last_tile_dim_replicate" in numbers else 1
    devices = list(map(int, numbers[0].split(",")))
    shape = [6 * 2] * len(spec)
    for position, device in enumerate(devices):
        tile, place = position // copies, {}
        number = device
        for axis in reversed(MESH_AXES):
            number, place[axis] = divmod(number, MESH[axis])
        starts = []
        for count, size in zip(reversed(tiles), reversed(shape), strict=True):
            tile, index = divmod(tile, count)
            starts.insert(0, index * (size // count))
        assert [part.start for part in part_of(shape, spec, MESH, place)] == starts


def test_what_no_axis_cuts_is_whole_everywhere():
    assert tpu_compiler.sharding_text((None, None), MESH) == tpu_compiler.sharding_text((), MESH) == "{replicated}"


MESSAGE = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. \
Used 39.27G of 30.75G hbm. Exceeded hbm capacity by 8.52G.

Largest program allocations in hbm:

  1. Size: 9.00G
     Operator: op_type="aten__mm" op_name="backward/blocks.3/attention/aten__mm" source_file="a.py" source_line=3
     Shape: f32[36,1024,8192]{2,1,0:T(8,128)}
     Unpadded size: 9.00G
     XLA label: fusion.7 = fusion(...)
     Allocation type: HLO temp
     ==========================

  2. Size: 512.0M
     Shape: bf16[8,8192]{1,0}
     XLA label: copy.1 = copy(...)
     ==========================
"""


def test_the_compilers_message_is_read_into_arrays_and_what_made_them():
    error = tpu_compiler.parse_out_of_memory(MESSAGE)
    assert (error.used, error.limit) == (39.27, 30.75)
    assert [(buffer.size, buffer.shape, buffer.operation) for buffer in error.buffers] == [
        ("9.00G", "f32[36,1024,8192]{2,1,0:T(8,128)}", "backward/blocks/attention/aten__mm"),
        ("512.0M", "bf16[8,8192]{1,0}", "copy.1 = copy(...)")]


def test_one_array_that_is_too_large_by_itself_is_named():
    error = tpu_compiler.parse_out_of_memory(
        "RESOURCE_EXHAUSTED: Allocation (size=38654705664) would exceed memory (size=34359738368) :: #allocation1 "
        "[shape = 'f32[36,8]{1,0}', space=hbm, tag = 'output of aten__expand.16@{}'] :: <no-hlo-instruction>")
    assert error.used == 36 and error.buffers[0].shape == "f32[36,8]{1,0}"
    assert error.buffers[0].operation == "output of aten__expand.16@{}"
