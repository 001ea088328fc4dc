"""Traces and counters of the XLA runtime, on one virtual device."""
import re

import pytest

from tests.runtime.xla_profile import NUM_STEPS
from tests.support.processes import printed, run_on_xla

pytest.importorskip("torch_xla")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trace")


@pytest.fixture(scope="module")
def done(folder):
    """The process: its counters and its log."""
    process = run_on_xla("tests.runtime.xla_profile", folder, flags=None)
    return printed(process), process.stderr


def test_compilations_are_counted_and_a_program_that_runs_again_adds_none(done):
    first, traced = done[0]["compiled"], done[0]["traced"]
    assert first["xla/compilations"] == traced["xla/compilations"] >= 1
    assert 0 < first["xla/compile_seconds"] == traced["xla/compile_seconds"] < 60


def test_transfers_are_counted_with_their_bytes(done):
    first, traced = done[0]["compiled"], done[0]["traced"]
    assert traced["xla/transfers_to_device"] - first["xla/transfers_to_device"] == NUM_STEPS
    assert traced["xla/bytes_to_device"] - first["xla/bytes_to_device"] == NUM_STEPS * 16 * 16 * 4
    assert traced["xla/transfers_from_device"] == first["xla/transfers_from_device"]


def test_a_fallback_is_counted_and_warned_of_once_by_name(done):
    counters, log = done
    assert [counters[when]["xla/fallbacks"] for when in ("compiled", "traced", "fallen back")] == [0, 0, 2]
    before, after = log.split("two fallbacks follow")
    assert "runs on the CPU" not in before
    assert len(re.findall("aten::linalg_eig is not an XLA operation here: it runs on the CPU", after)) == 1


def test_the_trace_is_where_tensorboards_profiler_looks_with_the_steps_and_no_others(done, folder):
    profiler = pytest.importorskip("jax.profiler")
    (path,) = folder.glob("plugins/profile/*/*.xplane.pb")
    planes = {plane.name: plane for plane in profiler.ProfileData.from_file(str(path)).planes}
    names = [event.name for line in planes["/host:CPU"].lines for event in line.events]
    assert sum(name == "PjRtComputationClient::ExecuteReplicated" for name in names) == NUM_STEPS
    assert any(name.startswith("dot") for name in names)
