"""Both stages on the torch runtime, on one XLA device, and on eight: the same losses; exact restarts; one program each.

Eight virtual devices of a CPU come as data = 8, and as data = 2, fsdp = 2, tensor = 2 with the partition rules of
gin/run/shard_transformers.gin for the prior, and of shard_hidden_features.gin for the tokenizer. To compile a run takes
tens of seconds on every mesh, so each trains only what it is the mesh for.
"""
import shutil

import numpy as np
import pytest

pytest.importorskip("torch_xla")

NUM_STEPS = 20
HALF = 10
TOLERANCE = 1e-5
"""Of losses, relative. Measured over these 20 steps: up to 1.5e-6, between any two."""

SHARDED = ["runtime.Xla.fsdp = 2", "runtime.Xla.tensor = 2"]
MESHES = {
    "one": ([], 1),
    "data": ([], 8),
    "sharded": (SHARDED, 8, ["gin/run/shard_transformers.gin"]),
    "hidden": (SHARDED, 8, ["gin/run/shard_hidden_features.gin"]),
}
"""Settings, number of devices and gin files of each."""


class Work:
    """The pieces of work, as plan.py takes them."""

    def __init__(self, directory):
        self.directory = directory

    def piece(self, gin, run, bindings, **more):
        return {"gin": f"gin/debug/{gin}_tiny.gin", "workdir": str(self.directory / run), "bindings": [
            f"NUM_STEPS = {NUM_STEPS}", "train.log_every = 1", f"train.save_every = {HALF}", *bindings], **more}

    def tokenizer(self, where, **more):
        return self.piece("tokenizer", f"{where}/tokenizer", [f"evaluation.Reconstructions.every = {HALF}"],
                          **more)

    def prior(self, where, dropout=True, **more):
        bindings = [f"TOKENIZER_RUN = '{self.directory / 'torch/tokenizer'}'",
                    f"evaluation.Predictions.every = {HALF}", f"evaluation.Samples.every = {HALF}"]
        if not dropout:
            bindings += ["prior.AutoregressivePrior.dropout_rate = 0.0",
                         "prior.AutoregressivePrior.class_dropout_rate = 0.0"]
        return self.piece("prior", f"{where}/prior" if dropout else f"{where}/prior_without_dropout", bindings, **more)

    def probe(self, where):
        return self.piece("probe", f"{where}/probe", [
            f"PRIOR_RUN = '{self.directory / 'torch/prior_without_dropout'}'",
            f"evaluation.Classifications.every = {HALF}"])


@pytest.fixture(scope="module")
def work(plans):
    return Work(plans.directory)


@pytest.fixture(scope="module")
def torch_runs(plans, work):
    arrays = str(plans.directory / "torch.npz")
    plans.run("torch", [work.tokenizer("torch"), work.prior("torch", dropout=False, arrays=arrays)])
    return plans


@pytest.fixture(scope="module")
def compiled(torch_runs, work):
    """What torch_xla counted: runs on every mesh."""
    results = {}
    for mesh, place in MESHES.items():
        pieces = {}
        if mesh != "sharded":
            pieces["tokenizer"] = work.tokenizer(mesh)
        if mesh in ("one", "sharded"):
            pieces["prior"] = work.prior(mesh)
        if mesh == "one":
            pieces |= {"prior_without_dropout": work.prior(mesh, dropout=False), "probe": work.probe(mesh)}
        counted = torch_runs.run("xla", list(pieces.values()), *place)
        results[mesh] = dict(zip(pieces, counted, strict=True))
    return results


@pytest.fixture(scope="module")
def resumed(compiled, torch_runs, work):
    """What torch_xla counted: runs `<mesh>/resumed`, by new processes that go on from `<mesh>/prior` after half of it.

    The one on the sharded mesh also reads the torch run's checkpoint, and a torch process the sharded run's.
    """
    directory, results = torch_runs.directory, {}
    for mesh in ("one", "sharded"):
        copy = directory / mesh / "resumed"
        shutil.copytree(directory / mesh / "prior", copy)
        shutil.rmtree(copy / "checkpoints" / f"{NUM_STEPS:08d}")
        pieces = [work.prior(mesh) | {"workdir": str(copy), "arrays": str(directory / f"{mesh}.npz")}]
        pieces[0]["bindings"].append("train.evaluators = []")
        if mesh == "sharded":
            pieces.append(work.prior("torch", dropout=False, restore=True, arrays=str(directory / "torch_sharded.npz")))
        results[mesh] = torch_runs.run("xla", pieces, *MESHES[mesh])[0]
    torch_runs.run("torch", [work.prior("sharded", restore=True, arrays=str(directory / "sharded_torch.npz"))])
    return results


def gap(losses, others):
    """The largest relative difference."""
    assert sorted(losses) == sorted(others) == list(range(1, NUM_STEPS + 1))
    return max(abs(losses[step] - others[step]) / abs(losses[step]) for step in losses)


@pytest.mark.parametrize("run", ["tokenizer", "prior_without_dropout"])
def test_xla_gives_the_losses_of_torch(compiled, plans, run):
    assert gap(plans.losses(f"torch/{run}"), plans.losses(f"one/{run}")) < TOLERANCE


@pytest.mark.parametrize(("mesh", "run"), [("data", "tokenizer"), ("sharded", "prior"), ("hidden", "tokenizer")])
def test_eight_devices_give_the_losses_of_one_also_with_dropout(compiled, plans, mesh, run):
    assert gap(plans.losses(f"one/{run}"), plans.losses(f"{mesh}/{run}")) < TOLERANCE


def test_dropout_moves_the_losses_by_more_than_the_tolerance(compiled, plans):
    assert gap(plans.losses("one/prior"), plans.losses("one/prior_without_dropout")) > 10 * TOLERANCE


@pytest.mark.parametrize(("mesh", "run", "prefix"), [
    ("data", "tokenizer", "evaluation/"), ("data", "tokenizer", "codebook/"), ("sharded", "prior", "evaluation/")])
def test_eight_devices_measure_what_one_measures(compiled, plans, mesh, run, prefix):
    for expected, row in zip(plans.rows(f"one/{run}", prefix), plans.rows(f"{mesh}/{run}", prefix), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mesh", MESHES)
def test_each_program_is_compiled_once_over_all_steps_evaluations_and_samples(compiled, mesh):
    counts = {run: counted["compiled"] for run, counted in compiled[mesh].items()}
    # Train and evaluate; train, evaluate, empty the sampler's cache, draw one position, decode.
    # And without dropout, which makes the step alone another program. What is cut is made whole before drawing.
    expected = {"tokenizer": 2, "prior": 6 if mesh == "sharded" else 5, "prior_without_dropout": 1, "probe": 2}
    assert counts == {run: expected[run] for run in compiled[mesh]}


@pytest.mark.parametrize("mesh", MESHES)
def test_no_operation_falls_back_to_the_cpu(compiled, mesh):
    assert [counted["fallbacks"] for counted in compiled[mesh].values()] == [[]] * len(compiled[mesh])


@pytest.mark.parametrize("mesh", MESHES)
def test_every_array_that_a_step_changes_is_updated_in_place(compiled, plans, mesh):
    others = {"tokenizer": 0, "prior": 3}  # the sampler's tokens, keys and values
    for run in others.keys() & compiled[mesh].keys():
        arrays, _ = plans.checkpoint(f"{mesh}/{run}")
        assert compiled[mesh][run]["updated"] - others[run] == sum(not name.startswith("frozen/") for name in arrays)


def test_rules_cut_parameters_and_their_moments(compiled, plans):
    arrays = plans.open("sharded/prior").metadata["arrays"]
    kernel = "prior/blocks/block/attention/query/kernel_IO"
    names = [f"params/{kernel}", *(f"optimizer/{kernel.replace('/', f'/{slot}/', 1)}" for slot in "mv")]
    for name in names:
        assert (arrays[name]["shape"], arrays[name]["chunks"]) == ([2, 32, 32], [2, 16, 16]), name


@pytest.mark.parametrize("mesh", ["one", "sharded"])
def test_a_resumed_run_compiles_its_step_once(resumed, mesh):
    assert resumed[mesh]["compiled"] == 1


@pytest.mark.parametrize("mesh", ["one", "sharded"])
def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_not_interrupted(resumed, plans, mesh):
    expected, expected_position = plans.checkpoint(f"{mesh}/prior", NUM_STEPS)
    arrays, position = plans.checkpoint(f"{mesh}/resumed", NUM_STEPS)
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in expected.items()}
    assert position == expected_position
    assert plans.losses(f"{mesh}/resumed") == plans.losses(f"{mesh}/prior")


@pytest.mark.parametrize("written, read", [("sharded", "sharded_torch"), ("torch", "torch_sharded")])
def test_a_checkpoint_of_one_runtime_is_read_bit_for_bit_on_the_other(resumed, plans, written, read):
    expected, arrays = (np.load(plans.directory / f"{name}.npz") for name in (written, read))
    assert {name: arrays[name].tobytes() for name in arrays.files} == {
        name: expected[name].tobytes() for name in expected.files}
