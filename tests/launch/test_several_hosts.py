"""What launch verbs do where each of several processes has a share of the work."""
import numpy as np
import pytest

from launch import cache_tokens, session
from tests.runtime.several_hosts import together
from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.store import HostArray
from vqim.registry.config import ConfigError, load
from vqim.runtime.torch import TorchRuntime
from vqim.state.leaf import select
from vqim.training.state import start

TOKENIZER = "gin/debug/tokenizer_tiny.gin"


@pytest.fixture(scope="module")
def experiment():
    """The tokenizer of gin/debug on emoji."""
    return load([TOKENIZER], [], []).call("train")


def test_a_token_cache_has_the_same_bytes_whether_one_process_encodes_or_several_do(experiment, tmp_path):
    def write(runtime, folder):
        params = select(start(experiment.task.init_spec(), 0, runtime).arrays, "params/tokenizer/")
        tokenizer = experiment.task.objective.tokenizer
        cache_tokens.write_cache(tmp_path / folder, tokenizer, params, experiment.data, runtime, fingerprint="1",
                                 batch_size=120, seed=0, num_views=2)

    write(TorchRuntime(), "one")
    runtimes, _ = together(3, lambda runtime: write(runtime, "three"))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 8
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "three" / file).read_bytes()
    assert {len(batch["labels"]) for runtime in runtimes for batch in runtime.loaded} == {40}
    assert len(np.unique(np.load(tmp_path / "one/train/tokens.npy"))) > 2


def claim(workdir, bindings=()):
    """All of three processes claim a directory; returns what each got, or its refusal."""
    config = load([TOKENIZER], bindings, [])

    def one(runtime):
        try:
            with session.claimed_workdir(config, workdir(runtime.process_index), runtime.hosts) as claimed:
                return claimed
        except ConfigError as error:
            return str(error)

    return together(3, one)[1]


def test_all_processes_take_a_new_directory_and_a_run_of_the_same_experiment(tmp_path):
    for _ in range(2):
        assert claim(lambda index: str(tmp_path / "run")) == [str(tmp_path / "run")] * 3
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.gin"]


def test_what_process_0_refuses_no_process_takes(tmp_path):
    claim(lambda index: str(tmp_path / "run"))
    manager = CheckpointManager(tmp_path / "run/checkpoints")
    manager.save(1, {"a": HostArray.whole(np.ones(3))}, {}, config="", data_position={})
    manager.wait()
    refusals = claim(lambda index: str(tmp_path / "run"), ["VOCABULARY = 32"])
    assert len(set(refusals)) == 1 and f"{tmp_path}/run holds another experiment" in refusals[0]


def test_a_directory_that_another_host_does_not_see_is_refused_there(tmp_path):
    for index in range(3):
        (tmp_path / str(index)).mkdir()
    results = claim(lambda index: str(tmp_path / str(index) / "run"))
    assert results[0] == str(tmp_path / "0/run")
    for index in (1, 2):
        assert results[index].startswith("--workdir must be a folder that all hosts share; ")
        assert results[index].endswith(f"has no config.gin for host {index}, though host 0 wrote it")
