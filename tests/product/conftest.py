"""Tiny tokenizers and priors as lines of gin, and runs of them."""
import pathlib

import gin
import pytest

import vqim.registry.components  # noqa: F401  gin knows the components from here on
from vqim.registry.config import load
from vqim.runtime.torch import TorchRuntime
from vqim.training.loop import train

CNN = """
include 'gin/model/cnn_tokenizer.gin'
include 'gin/debug/shrink_cnn.gin'
tokenizer.CNNDecoder.logit_laplace = True
VOCABULARY = 24
"""

TOKENIZERS = {
    "ViT": "",
    "CNN": CNN,
    "MoVQ": CNN + """
tokenizer.ImageTokenizer.quantizer = @tokenizer.MultichannelQuantizer()
tokenizer.MultichannelQuantizer:
    width_in = %LATENT_WIDTH
    width_out = %LATENT_WIDTH
    vocabulary = %VOCABULARY
    code_dim = 16
    channels = 4
""",
    "RQ": CNN + """
tokenizer.ImageTokenizer.quantizer = @tokenizer.ResidualQuantizer()
tokenizer.ResidualQuantizer:
    width_in = %LATENT_WIDTH
    width_out = %LATENT_WIDTH
    vocabulary = %VOCABULARY
    code_dim = 16
    depth = 2
""",
    "two levels": CNN + """
tokenizer.ImageTokenizer.quantizer = @tokenizer.HierarchicalQuantizer()
tokenizer.HierarchicalQuantizer:
    width_in = %LATENT_WIDTH
    top = @top/tokenizer.VectorQuantizer()
    bottom = @bottom/tokenizer.VectorQuantizer()
tokenizer.CNNDecoder.width = 64
tokenizer.VectorQuantizer.width_out = 32
bottom/tokenizer.VectorQuantizer.width_in = 64
top/tokenizer.VectorQuantizer.vocabulary = 16
""",
    "Gumbel": CNN + """
tokenizer.ImageTokenizer.quantizer = @tokenizer.GumbelQuantizer()
tokenizer.GumbelQuantizer:
    width_in = %LATENT_WIDTH
    width_out = %LATENT_WIDTH
    vocabulary = %VOCABULARY
    temperature = @temperature/optim.WarmupCosine()
temperature/optim.WarmupCosine:
    peak = 1.0
    final = 0.1
    warmup_steps = 0
    total_steps = 100
""",
    "dVAE": """
include 'gin/model/dvae_tokenizer.gin'
include 'gin/debug/shrink_dvae.gin'
temperature/optim.WarmupCosine:
    peak = 1.0
    final = 0.1
    warmup_steps = 0
    total_steps = 100
""",
}
"""What stands in a tokenizer's file after gin/debug/tokenizer_tiny.gin, and again in the file of a prior over it."""

PRIORS = {
    "autoregressive": "",
    "masked": """
prior.PriorObjective:
    prior = @prior.MaskedPrior
    sampler = @prior.MaskedSampler()
prior.MaskedPrior:
    width = 32
    num_layers = 2
    num_heads = 2
    hidden = 64
    class_dropout_rate = 0.3
prior.MaskedSampler.num_steps = 3
""",
    "RQ-transformer": """
prior.PriorObjective.prior = @prior.RQTransformer
prior.RQTransformer:
    width = 32
    num_layers = 2
    num_depth_layers = 1
    num_heads = 2
    hidden = 64
    code_dim = 16
    class_dropout_rate = 0.3
""",
}
"""What stands in a prior's file after gin/debug/prior_tiny.gin. Over several codes a position, the autoregressive prior
goes over channels: MoVQ's "auto"."""

NETWORKS = {"autoregressive": "AutoregressivePrior", "masked": "MaskedPrior", "RQ-transformer": "RQTransformer"}
"""Their classes."""

CLASSES = {"classes": "", "no classes": "NUM_CLASSES = 0\n"}

TWO_STEPS = """
train:
    num_steps = 2
    batch_size = 4
    log_every = 1
    save_every = 2
    evaluators = []
data.Images.num_threads = 1
"""


def write_prior(folder, tokenizer, prior, classes="classes", more=""):
    """A prior's gin file; it needs TOKENIZER_RUN."""
    text = (f"include 'gin/debug/prior_tiny.gin'\n{TOKENIZERS[tokenizer]}{PRIORS[prior]}{CLASSES[classes]}"
            f"{TWO_STEPS}{more}")
    path = folder / f"{tokenizer} {prior} {classes}.gin"
    path.write_text(text)
    return path


def trained(file, workdir, *bindings):
    """Trains what a gin file describes, every line of which has to be used; returns the run's directory."""
    gin.clear_config()
    try:
        config = load([str(file)], list(bindings), [])
        experiment = config.call("train")
        config.refuse_unused(except_for=(r"runtime\.",))
        pathlib.Path(workdir).mkdir(parents=True)
        (workdir / "config.gin").write_text(config.text())
        train(experiment, workdir=workdir, runtime=TorchRuntime(), config=config.text())
    finally:
        gin.clear_config()
    return workdir


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder for gin files and runs."""
    return tmp_path_factory.mktemp("product")


@pytest.fixture(scope="session")
def tokenizer_run(folder):
    """`tokenizer_run(name)`: the directory of a tokenizer's run, trained once."""
    def run(name):
        workdir = folder / f"tokenizer {name}"
        if not workdir.exists():
            file = folder / f"{name}.gin"
            file.write_text(f"include 'gin/debug/tokenizer_tiny.gin'\n{TOKENIZERS[name]}{TWO_STEPS}")
            trained(file, workdir)
        return workdir
    return run


@pytest.fixture(scope="session")
def prior_run(folder, tokenizer_run):
    """`prior_run(tokenizer, prior, classes)`: the directory of a prior's run over that tokenizer, trained once."""
    def run(tokenizer, prior, classes="classes"):
        workdir = folder / f"prior {tokenizer} {prior} {classes}"
        if not workdir.exists():
            file = write_prior(folder, tokenizer, prior, classes)
            trained(file, workdir, f"TOKENIZER_RUN = {str(tokenizer_run(tokenizer))!r}")
        return workdir
    return run
