"""A quantizer from outside of vqim/ is trained by the launcher, end to end, as docs/gin.md says."""
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import gin
import pytest
import torch

from vqim.checkpoint.manager import CheckpointManager
from vqim.contracts.context import Context
from vqim.nn.module import apply, spec
from vqim.runtime.torch import TorchKernels
from vqim.state.init import full_index

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
STEPS = ("--gin_bindings=NUM_STEPS = 20", "--runtime=torch")


@pytest.fixture
def quantizer_class():
    """The plugin's class; gin's registry is as it was afterwards."""
    with gin.unlock_config():  # another file's tests may have left a configuration loaded
        plugin = runpy.run_path(str(HERE / "finite_scalar_quantizer.py"))
    yield plugin["FiniteScalarQuantizer"]
    gin.config._REGISTRY.pop("plugin.FiniteScalarQuantizer")


@pytest.fixture
def launch(tmp_path):
    """Runs a verb in an empty directory, with the plugin's folder on PYTHONPATH."""
    def run(verb, *flags):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", f"launch.{verb}", *flags]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.mark.parametrize("name", ["finite_scalar_quantizer.py", "finite_scalar_tokenizer.gin"])
def test_the_documentation_shows_these_very_files(name):
    blocks = re.findall(r"^```(?:python)?\n(.*?)^```$", (ROOT / "docs/gin.md").read_text(), re.DOTALL | re.MULTILINE)
    assert (HERE / name).read_text() in blocks


def test_finite_scalar_codes_are_the_grids_points_and_lookup_gives_them_again(quantizer_class):
    quantizer = quantizer_class(width=6, levels=(3, 5))
    params = {name: torch.from_numpy(leaf.init(name, leaf.shape, 0, full_index(leaf.shape)))
              for name, leaf in spec(quantizer).items()}
    latents_BhwD = 3 * torch.randn(2, 40, 40, 6, generator=torch.Generator().manual_seed(0))
    context = Context(TorchKernels())
    quantized = apply(quantizer.forward, params, latents_BhwD, context)
    assert sorted(set(quantized.indices[0].flatten().tolist())) == list(range(15))
    found = apply(quantizer.lookup, params, quantized.indices, context)
    torch.testing.assert_close(found.vectors_BhwZ, quantized.codes.vectors_BhwZ)
    torch.testing.assert_close(found.latents_BhwD, quantized.codes.latents_BhwD)


@pytest.mark.parametrize("levels", [(4, 5), (1, 3)])
def test_levels_that_have_no_middle_or_no_choice_are_refused(quantizer_class, levels):
    with pytest.raises(ValueError, match="levels must be odd numbers of at least 3, got"):
        quantizer_class(width=6, levels=levels)


def test_a_plugged_in_quantizer_is_trained_and_a_prior_over_its_tokens(launch, tmp_path):
    launch("train", f"--gin_file={HERE / 'finite_scalar_tokenizer.gin'}", "--workdir=runs/debug/tokenizer", *STEPS)
    tokenizer = CheckpointManager(tmp_path / "runs/debug/tokenizer/checkpoints").open()
    assert tokenizer.spec("params/tokenizer/quantizer/project_in/kernel_IO")[0] == (32, 4)
    assert tokenizer.names("codebook") == []

    text = (HERE / "finite_scalar_tokenizer.gin").read_text()
    (tmp_path / "prior.gin").write_text(text.replace("tokenizer_tiny", "prior_tiny"))
    launch("train", "--gin_file=prior.gin", "--workdir=prior", *STEPS)
    prior = CheckpointManager(tmp_path / "prior/checkpoints").open()
    frozen = "tokenizer/quantizer/project_in/kernel_IO"
    assert (prior.read(f"frozen/{frozen}") == tokenizer.read(f"params/{frozen}")).all()

    rows = [json.loads(line) for line in (tmp_path / "prior/metrics.jsonl").read_text().splitlines()]
    measured = [row["evaluation/bits_per_token"] for row in rows if "evaluation/bits_per_token" in row]
    # It began, with the logits of an untrained network, near the entropy of 7 x 5 x 5 x 5 codes.
    assert measured[-1] < rows[0]["loss/bits_per_token"] < 11
