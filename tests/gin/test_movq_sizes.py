"""Parameters of MoVQ's tables at full size, by the experiments' files: by hand, and as docs/papers.md prints them.

The paper prints 72.1M for VQGAN, 82.7M for MoVQ (which no choice of its normalisations gives) and 100M for RQ-VAE.
"""
import gin
import pytest

import vqim.registry.components  # noqa: F401  gin knows the components from here on
from tests.gin.files import ROOT
from vqim.nn.module import spec, statistics_spec
from vqim.registry.config import load

F16 = 29_298_176 + 42_449_795
"""VQGAN's encoder and decoder; tests/tokenizer/test_cnn.py counts them by hand."""
PROJECTION = 256 * 256 + 256


def modulated(channels):
    """Two 1x1 convolutions of 256 dimensions."""
    return 2 * (256 * channels + channels)


# Of the middle and the first three levels: two normalisations a residual block, one an attention.
MODULATION = sum(modulated(channels) for channels in [512] * 5 + [512] * 9 + [512] + [256] * 5 + [256] * 6)


def conv(num_inputs, num_outputs, size=3):
    return num_inputs * num_outputs * size**2 + num_outputs


def f32():
    """Of one level more: two residual blocks in the encoder, three in the decoder, a change of resolution in each."""
    block = 2 * (2 * 512 + conv(512, 512))
    return F16 + 5 * block + 2 * conv(512, 512)


@pytest.fixture(autouse=True)
def no_configuration_stays():
    yield
    gin.clear_config()


def make(name, *bindings):
    return load([f"gin/exp/{name}.gin"], list(bindings), []).call("tokenizer.ImageTokenizer")


@pytest.mark.parametrize(("name", "bindings", "grid", "parameters", "printed"), [
    ("vqgan_ffhq", (), [16, 16, 1, 1024], F16 + 1024 * 256 + 2 * PROJECTION, 72_141_699),
    ("movq_ablations/multichannel", (), [16, 16, 4, 1024], F16 + 1024 * 64 + 2 * PROJECTION, 71_945_091),
    ("movq_ffhq", (), [16, 16, 4, 1024], F16 + MODULATION + 1024 * 64 + 2 * PROJECTION, 77_340_035),
    ("movq_imagenet", (), [16, 16, 4, 1024], F16 + MODULATION + 1024 * 64 + 2 * PROJECTION, 77_340_035),
    ("movq_imagenet", ("VOCABULARY = 16384",), [16, 16, 4, 16384],
     F16 + MODULATION + 16384 * 64 + 2 * PROJECTION, None),
    ("movq_ffhq", ("CODES_PER_POSITION = 8",), [16, 16, 8, 1024],
     F16 + MODULATION + 1024 * 32 + 2 * PROJECTION, None),
    ("movq_ablations/codes", (), [16, 16, 4, 1024], F16 + MODULATION + 1024 * 64 + 2 * PROJECTION, 77_340_035),
    ("movq_ablations/sinusoids", (), [16, 16, 4, 1024], F16 + MODULATION + 1024 * 64 + PROJECTION, 77_274_243),
    ("movq_ablations/constant", (), [16, 16, 4, 1024],
     F16 + MODULATION + 1024 * 64 + PROJECTION + 16 * 16 * 256, 77_339_779),
])
def test_movqs_networks_have_the_parameters_of_their_parts(name, bindings, grid, parameters, printed):
    model = make(name, *bindings)
    assert model.grid.as_lists() == [grid]
    assert sum(leaf.size for leaf in spec(model).values()) == parameters
    if printed:
        assert parameters == printed and f"{printed:,}" in (ROOT / "docs/papers.md").read_text()


@pytest.mark.parametrize(("name", "grid", "networks", "printed"), [
    ("rqvae_ffhq", [8, 8, 4, 2048], f32(), 100_731_779), ("rqvae_ffhq_16x16", [16, 16, 4, 2048], F16, 72_403_843),
    ("rqvae_imagenet", [8, 8, 16, 16384], f32(), 104_401_795)])
def test_rq_vaes_networks_have_the_parameters_of_their_parts(name, grid, networks, printed):
    model = make(name)
    assert model.grid.as_lists() == [grid]
    codebook = statistics_spec(model)["quantizer/codebook_VZ"].size
    assert codebook == 256 * grid[-1]
    parameters = sum(leaf.size for leaf in spec(model).values())
    assert parameters == networks + 2 * PROJECTION and parameters + codebook == printed
    assert f"{printed:,}" in (ROOT / "docs/papers.md").read_text()
