"""Runs that start from other runs: what is read, what begins anew, and what is refused as nothing is said of it."""
import re
import shutil

import numpy as np
import pytest
import torch

from tests.support.steps import RUNTIME, run_step
from tests.training.small_tasks import make_batch, make_state, make_task
from vqim.checkpoint.errors import NoCheckpointError
from vqim.checkpoint.manager import CheckpointManager
from vqim.data.images import Images
from vqim.data.source import Emoji
from vqim.optim.adamw import AdamW
from vqim.state.init import Constant, full_index
from vqim.state.leaf import Leaf
from vqim.training.experiment import Experiment
from vqim.training.loop import train
from vqim.training.start_from import StartFrom, started_spec
from vqim.training.state import TrainState, save

ENCODER = {"params/tokenizer/encoder/(.*)": r"params/classifier/encoder/\1"}
REST, NEW = ("params/tokenizer/(quantizer|decoder)/.*",), ("params/classifier/(norm|head)/.*",)


@pytest.fixture
def save_run(tmp_path):
    """`save_run(name, spec, arrays, steps)`: the directory of a run with these checkpoints."""
    def write(name, spec, arrays, steps=(1,)):
        manager = CheckpointManager(tmp_path / name / "checkpoints")
        spec = {key: leaf for key, leaf in spec.items() if key in arrays}
        for step in steps:
            state = TrainState({key: array + (step - 1) for key, array in arrays.items()}, step, 0)
            save(state, spec, manager, RUNTIME, data_position={}, config="", metrics={})
            manager.wait()
        return str(tmp_path / name)

    return write


def trained(kind, **settings):
    """The specification and the state of a task after some updates."""
    task, batch = make_task(kind, AdamW, **settings), make_batch()
    state = make_state(task)
    for step in range(2):
        run_step(task, state, batch, step)
    return task.init_spec(), state


def filled(spec, names):
    """The initial values of some arrays of a specification."""
    return {name: torch.from_numpy(spec[name].init(name, spec[name].shape, 0, full_index(spec[name].shape)))
            for name in names}


def small(run, arrays=None, **settings):
    """`StartFrom`, all names as they are there unless told otherwise."""
    return StartFrom(run, **{} if arrays is None else {"arrays": arrays}, **settings)


def arrays_of(**shapes):
    """Leaves and arrays of these shapes; `a_w` stands for params/a/w."""
    spec = {f"params/{name.replace('_', '/')}": Leaf(shape, Constant(0.0), ("features",) * len(shape))
            for name, shape in shapes.items()}
    return spec, {name: torch.randn(leaf.shape) for name, leaf in spec.items()}


def test_parameters_are_those_of_the_other_run(save_run):
    spec, state = trained("classifier")
    run = save_run("first", spec, state)
    names = [name for name in spec if name.startswith("params/")]
    found = filled(started_spec(make_task("classifier").init_spec(), [StartFrom(run)])[0], names)
    assert all(torch.equal(found[name], state[name]) for name in names)


def test_slices_are_read_as_they_are_asked_for(save_run):
    spec, state = trained("classifier")
    started, _ = started_spec(spec, [StartFrom(save_run("first", spec, state))])
    name = "params/classifier/encoder/tower/blocks/block/attention/query/kernel_IO"
    index = (slice(1, 2), slice(3, 9), slice(0, 16))
    np.testing.assert_array_equal(started[name].init(name, (2, 16, 16), 0, index), state[name][index])


def test_moving_averages_are_taken_where_they_are_kept(save_run):
    spec, state = trained("classifier", ema_decay=0.5)
    names = [name for name in spec if name.startswith("params/")]
    started, _ = started_spec(make_task("classifier").init_spec(), [StartFrom(save_run("first", spec, state))])
    found = filled(started, names)
    assert all(torch.equal(found[name], state[name.replace("params/", "ema/")]) for name in names)
    assert any(not torch.equal(found[name], state[name]) for name in names)


def test_parameters_are_taken_where_their_average_has_not_begun(save_run):
    spec, state = trained("classifier", ema_decay=0.5)
    names = [name for name in spec if name.startswith("params/")]
    for name in names:
        state[name.replace("params/", "ema/")].zero_()  # as before the first step of a learner that starts later
    started, _ = started_spec(make_task("classifier").init_spec(), [StartFrom(save_run("first", spec, state))])
    found = filled(started, names)
    assert all(torch.equal(found[name], state[name]) for name in names)


def test_statistics_are_taken_like_parameters(save_run):
    spec, state = trained("probe")
    names = ["statistics/probe/mean_LD", "statistics/probe/variance_LD"]
    found = filled(started_spec(spec, [StartFrom(save_run("first", spec, state))])[0], names)
    assert all(torch.equal(found[name], state[name]) for name in names)


def test_slots_averages_and_flags_begin_anew(save_run):
    spec, state = trained("classifier", ema_decay=0.5)
    started, _ = started_spec(spec, [StartFrom(save_run("first", spec, state))])
    others = [name for name in spec if not name.startswith("params/")]
    assert {name.split("/")[0] for name in others} == {"ema", "optimizer", "health"}
    assert all(started[name] == spec[name] for name in others)


def test_patterns_give_names_of_another_kind_of_run(save_run):
    spec, state = trained("tokenizer")
    run = save_run("tokenizer", spec, state)
    here = make_task("classifier").init_spec()
    started, records = started_spec(here, [small(run, ENCODER, left=REST, fresh=NEW)])
    names = [name for name in here if name.startswith("params/classifier/encoder/")]
    found = filled(started, names)
    assert all(torch.equal(found[name], state[name.replace("classifier", "tokenizer")]) for name in names)
    assert records == [{"run": run, "step": 1, "arrays": len(names)}]
    assert started["params/classifier/head/bias_O"] == here["params/classifier/head/bias_O"]


def test_several_runs_give_parts(save_run):
    spec, arrays = arrays_of(a_w=(3,), b_w=(2, 2))
    runs = [save_run(name, spec, {f"params/{name}/w": arrays[f"params/{name}/w"]}) for name in "ab"]
    started, records = started_spec(spec, [StartFrom(run) for run in runs])
    assert all(torch.equal(array, arrays[name]) for name, array in filled(started, spec).items())
    assert [record["run"] for record in records] == runs


def test_the_first_pattern_that_matches_counts(save_run):
    spec, arrays = arrays_of(a_w=(3,), a_v=(3,))
    here = {name.replace("/a/", "/b/"): leaf for name, leaf in spec.items()}
    patterns = {"params/a/w": "params/b/v", "params/a/(.*)": "params/b/w"}
    found = filled(started_spec(here, [small(save_run("first", spec, arrays), patterns)])[0], here)
    assert torch.equal(found["params/b/v"], arrays["params/a/w"])
    assert torch.equal(found["params/b/w"], arrays["params/a/v"])


def test_the_newest_checkpoint_is_read_unless_a_step_is_given(save_run):
    spec, arrays = arrays_of(a_w=(3,))
    run = save_run("first", spec, arrays, steps=(1, 2, 3))
    for step, expected in ((None, 3), (2, 2)):
        started, records = started_spec(spec, [small(run, step=step)])
        assert records[0]["step"] == expected
        assert torch.equal(filled(started, spec)["params/a/w"], arrays["params/a/w"] + (expected - 1))


def test_without_sources_a_run_starts_as_it_is_described():
    spec, _ = arrays_of(a_w=(3,))
    assert started_spec(spec, []) == (spec, [])


# What the other run has, what this one has, and what is said of both -> why it is refused.
MISFITS = [
    (["a_w", "b_w"], ["a_w"], {"arrays": {"params/a/.*": "params/a/w"}},
     "first: params/b/w is not taken; name it in `left` if that is meant"),
    (["a_w", "b_w"], ["a_w"], {}, "first: params/b/w -> params/b/w: this run has no such array; name it in `left` if"),
    (["a_w"], ["a_w", "b_w"], {}, "params/b/w: no run gives it; name it in `fresh` to keep its initial values"),
    (["a_w"], ["a_w"], {"arrays": {"(.*)": r"\1", "params/c/.*": "params/c/w"}},
     "first: no array there matches 'params/c/.*'; it has params/a/w"),
    (["a_w"], ["a_w"], {"arrays": {"(.*)": r"\1", "params/a/.*": "params/b/w"}},
     "first: what 'params/a/.*' matches there, `left` or an earlier pattern has already"),
    (["a_w", "b_w"], ["a_w"], {"arrays": {"params/./w": "params/a/w"}},
     "first: params/b/w and params/a/w would both become params/a/w"),
    (["a_w"], ["a_w"], {"arrays": {"params/a/w": "optimizer/a/m/w"}},
     "first: params/a/w -> optimizer/a/m/w: this run has no such array"),
    (["a_w", "b_w"], ["a_w", "b_w"], {"fresh": ["params/b/.*"]},
     "params/b/w: it is in `fresh`, and a run gives it; name it in that run's `left` too"),
]


@pytest.mark.parametrize(("there", "here", "settings", "message"), MISFITS)
def test_what_is_on_one_side_only_is_refused_unless_that_is_said(save_run, there, here, settings, message):
    spec, arrays = arrays_of(**dict.fromkeys(there, (3,)))
    run = save_run("first", spec, arrays)
    wanted, _ = arrays_of(**dict.fromkeys(here, (3,)))
    with pytest.raises(ValueError, match="start_from does not fit:\n.*" + re.escape(message)):
        started_spec(wanted, [small(run, **settings)])


def test_what_is_on_one_side_only_is_fine_where_that_is_said(save_run):
    spec, arrays = arrays_of(a_w=(3,), b_w=(3,))
    wanted, _ = arrays_of(a_w=(3,), c_w=(3,))
    source = small(save_run("first", spec, arrays), left=["params/b/.*"], fresh=["params/c/.*"])
    started, _ = started_spec(wanted, [source])
    assert started["params/c/w"] == wanted["params/c/w"] and started["params/a/w"] != wanted["params/a/w"]


def test_two_runs_that_give_the_same_array_are_refused(save_run):
    spec, arrays = arrays_of(a_w=(3,))
    runs = [save_run(name, spec, arrays) for name in ("first", "second")]
    with pytest.raises(ValueError, match="second: params/a/w -> params/a/w: another run gives it too"):
        started_spec(spec, [StartFrom(run) for run in runs])


def test_another_shape_is_refused_with_both(save_run):
    spec, arrays = arrays_of(a_w=(3, 2))
    wanted, _ = arrays_of(a_w=(3, 4))
    with pytest.raises(ValueError, match=re.escape("expected float32 [3, 4], it has float32 [3, 2]; name it in ")):
        started_spec(wanted, [StartFrom(save_run("first", spec, arrays))])


def test_all_misfits_are_listed_at_once(save_run):
    spec, arrays = arrays_of(a_w=(3, 2), b_w=(3,))
    wanted, _ = arrays_of(a_w=(3, 4), c_w=(3,))
    with pytest.raises(ValueError) as refused:
        started_spec(wanted, [StartFrom(save_run("first", spec, arrays))])
    assert [word in str(refused.value) for word in ("params/a/w", "params/b/w", "params/c/w")] == [True] * 3


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(NoCheckpointError, match="nowhere"):
        started_spec({}, [StartFrom(str(tmp_path / "nowhere"))])


def test_a_name_with_a_group_that_its_pattern_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"got 'params/\(\.\*\)' -> 'params/\\\\2': invalid group reference 2"):
        StartFrom("run", {"params/(.*)": r"params/\2"})


@pytest.mark.parametrize("settings", [{"arrays": {"(": "x"}}, {"left": ["("]}, {"fresh": ["("]}])
def test_patterns_that_are_none_are_refused(settings):
    with pytest.raises(ValueError, match=r"arrays, left and fresh must have regular expressions, got '\('"):
        StartFrom("run", **settings)


def test_the_source_is_recorded_in_checkpoints_and_kept_through_a_restart_without_it(save_run, tmp_path):
    spec, state = trained("classifier")
    run = save_run("first", spec, state, steps=(7,))

    def go_on(num_steps):
        experiment = Experiment(make_task("tokenizer", AdamW), Images(Emoji, 16), num_steps, 4, start_from=[
            small(run, {"params/classifier/encoder/(.*)": r"params/tokenizer/encoder/\1"},
                  left=["params/classifier/(norm|head)/.*"], fresh=["params/tokenizer/(quantizer|decoder)/.*"])])
        train(experiment, workdir=tmp_path / "second", runtime=RUNTIME, config="")
        return CheckpointManager(tmp_path / "second/checkpoints").open(num_steps).metadata["origins"]

    first = go_on(1)
    shutil.rmtree(run)
    num_arrays = sum(name.startswith("params/classifier/encoder/") for name in spec)
    assert first == go_on(2) == [{"run": run, "step": 7, "arrays": num_arrays}]
