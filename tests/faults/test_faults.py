"""A few of the faults of which flips.py and soak.py make many."""
import ml_dtypes
import numpy as np
import pytest

from tests.faults import flips
from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.store import HostArray
from vqim.data.images import Images
from vqim.data.source import Emoji
from vqim.registry.stamp import stamped
from vqim.training.facts import write_facts


@pytest.fixture
def run(tmp_path):
    """A run with a small checkpoint."""
    generator = np.random.default_rng(0)
    arrays = {"params/a": generator.standard_normal((40, 30)), "params/b": np.arange(5, dtype=np.int8),
              "ema/a": generator.standard_normal((40, 30)).astype(ml_dtypes.bfloat16), "health/bad": np.array(-1)}
    manager = CheckpointManager(tmp_path / "checkpoints")
    manager.save(3, {name: HostArray.whole(array) for name, array in arrays.items()}, {"seed": 0},
                 config="a = 1", data_position={"next_example": 640})
    manager.wait()
    write_facts(tmp_path, Images(Emoji, 8))
    (tmp_path / "config.gin").write_text(stamped("a = 1\n"))
    return tmp_path


def test_a_changed_bit_in_any_kind_of_file_is_found_or_harmless(run):
    results = flips.flip(run, 200, seed=0)
    assert {result for _, result in results} <= set(flips.GOOD)
    assert len({kind for kind, _ in results}) >= 9
    found = {kind for kind, result in results if result == "found"}
    for name in ("commit.json", "metadata.json", "config.gin", "data/<n>.json", "run.json", "net.safetensors",
                 "state/manifest.ocdbt"):
        assert any(kind.endswith(name) for kind in found), name
