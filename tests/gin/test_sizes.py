"""The sizes of ViT-VQGAN's Table 2, as gin/model/sizes has them: parameters, beside the paper's, by hand, and composed.

The paper's dimensions win over its counts: of these, Base alone follows from them.
"""
import pytest

import vqim.registry.components  # noqa: F401  gin knows the components from here on
from vqim.contracts.grid import Level, TokenGrid
from vqim.nn.module import spec
from vqim.registry.config import load

SIZES = {  # blocks, heads, width, hidden width
    "small": (8, 8, 512, 2048), "base": (12, 12, 768, 3072), "large": (32, 16, 1280, 5120),
    "vim_base": (24, 16, 1536, 6144), "vim_large": (36, 32, 2048, 8192)}
TOKENIZERS = {"ss": ("small", "small"), "bb": ("base", "base"), "ll": ("large", "large"), "sl": ("small", "large")}
CODES, CODE_DIM = 8192, 32


def num_parameters(module):
    return sum(leaf.size for leaf in spec(module).values())


def blocks(size):
    """Four square matrices, the feed-forward, their biases and two norms, in each block."""
    num_layers, _, d, f = SIZES[size]
    return num_layers * (4 * d**2 + 2 * d * f + 9 * d + f)


def tower(size, num_tokens):
    """Positions, blocks, the last norm."""
    d = SIZES[size][2]
    return num_tokens * d + blocks(size) + 2 * d


def feed_forward(num_inputs, hidden, num_outputs):
    return num_inputs * hidden + hidden + hidden * num_outputs + num_outputs


def encoder(size, patch):
    *_, d, f = SIZES[size]
    return 3 * patch**2 * d + d + tower(size, (256 // patch) ** 2) + feed_forward(d, f, d)


def decoder(size, patch):
    """Two values for each value of a pixel."""
    *_, d, f = SIZES[size]
    return tower(size, (256 // patch) ** 2) + feed_forward(d, f, 2 * 3 * patch**2)


def quantizer(width_in, width_out):
    return CODES * CODE_DIM + width_in * CODE_DIM + CODE_DIM + CODE_DIM * width_out + width_out


def make_tokenizer(name, *bindings):
    config = load([f"gin/model/sizes/vit_vqgan_{name}.gin"], list(bindings), [])
    return config.call("tokenizer.ImageTokenizer")


def make_prior(name, grid, num_classes, *bindings):
    config = load([f"gin/model/sizes/vim_{name}.gin"], list(bindings), [])
    return config.call("prior.AutoregressivePrior", grid=grid, num_classes=num_classes)


# Millions in the paper, which counts one tower; our encoder.
@pytest.mark.parametrize(("name", "paper", "patch", "parameters"), [
    ("ss", 32, 8, 27_942_912), ("bb", 91, 8, 90_713_088), ("ll", 599, 8, 644_352_000), ("sl", 32, 8, 27_942_912),
    ("ss", None, 16, 27_844_608), ("bb", None, 16, 90_565_632), ("ll", None, 16, 644_106_240),
])
def test_an_encoder_has_the_parameters_of_its_dimensions(name, paper, patch, parameters):
    model = make_tokenizer(name, f"PATCH_SIZE = {patch}")
    assert num_parameters(model.encoder) == parameters == encoder(TOKENIZERS[name][0], patch)
    if name == "bb" and paper:
        assert round(parameters / 1e6) == paper


# Encoder, quantizer and decoder; the paper says nothing of these sums.
@pytest.mark.parametrize(("name", "patch", "parameters"), [
    ("ss", 8, 55_820_192), ("bb", 8, 180_410_016), ("ll", 8, 1_284_213_920), ("sl", 8, 667_780_256),
    ("ss", 16, 57_689_120), ("sl", 16, 672_598_304),
])
def test_a_tokenizer_has_the_parameters_of_its_parts(name, patch, parameters):
    model = make_tokenizer(name, f"PATCH_SIZE = {patch}")
    sides = TOKENIZERS[name]
    assert num_parameters(model) == parameters == (
        encoder(sides[0], patch) + quantizer(*(SIZES[side][2] for side in sides)) + decoder(sides[1], patch))


# Millions in the paper; ours, without classes (Table 5), with those of ImageNet (Tables 6, 8); 32x32 or 16x16 tokens.
@pytest.mark.parametrize(("name", "paper", "patch", "num_classes", "parameters"), [
    ("base", 650, 8, 0, 706_707_968), ("large", 1697, 8, 0, 1_848_563_712),
    ("base", 650, 8, 1000, 708_243_968), ("large", 1697, 8, 1000, 1_850_611_712),
    ("base", 650, 16, 1000, 707_064_320), ("large", 1697, 16, 1000, 1_849_038_848),
])
def test_a_prior_has_the_parameters_of_its_dimensions(name, paper, patch, num_classes, parameters):
    grid = make_tokenizer("ss", f"PATCH_SIZE = {patch}").grid
    assert grid.as_lists() == [[256 // patch, 256 // patch, 1, CODES]]
    prior, d = make_prior(name, grid, num_classes), SIZES[f"vim_{name}"][2]
    tables = (num_classes + 1) * d + CODES * d
    assert num_parameters(prior) == parameters == (
        tables + tower(f"vim_{name}", (256 // patch) ** 2) + d * CODES + CODES)
    assert 1.08 < parameters / (paper * 1e6) < 1.10  # no sum of the paper's own dimensions gives its count


def test_what_comes_after_the_include_wins():
    model = make_tokenizer(
        "bb", "IMAGE_SIZE = 128", "PATCH_SIZE = 16", "CODE_DIM = 4", "VOCABULARY = 1024", "DECODER_LAYERS = 3")
    assert model.grid.as_lists() == [[8, 8, 1, 1024]]
    assert (model.encoder.tower.blocks.num_layers, model.decoder.tower.blocks.num_layers) == (12, 3)
    without = make_prior("large", model.grid, 0, "prior.AutoregressivePrior.dropout_rate = 0.0")
    assert without.blocks.block.dropout_rate == 0.0
    assert make_prior("large", model.grid, 0).blocks.block.dropout_rate == 0.1


# Millions in SeQ-GAN's Table 8; ours with ImageNet's classes over 16x16 tokens of 1024.
@pytest.mark.parametrize(("name", "paper", "width", "hidden"), [("base", 172, 768, 3072), ("large", 305, 1024, 4096)])
@pytest.mark.parametrize(("kind", "prior"), [("ar", "AutoregressivePrior"), ("nar", "MaskedPrior")])
def test_seq_gans_priors_have_the_parameters_of_table_8(name, paper, width, hidden, kind, prior):
    config = load([f"gin/model/sizes/seq_gan_{kind}_{name}.gin"], [], [])
    module = config.call(f"prior.{prior}", grid=TokenGrid((Level(16, 16, 1, 1024),)), num_classes=1000)
    blocks = 24 * (4 * width**2 + 2 * width * hidden + 9 * width + hidden)
    tables = 1001 * width + 1024 * width + 256 * width + (width if kind == "nar" else 0)  # classes, codes, places, mask
    assert num_parameters(module) == blocks + tables + 2 * width + width * 1024 + 1024
    assert num_parameters(module) == pytest.approx(paper * 1e6, rel=6e-3)
