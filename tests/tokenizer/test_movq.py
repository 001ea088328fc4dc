"""MoVQ's decoder: where the modulated normalisations are, what they cost, and first features F0 by their formulas.

tests/peers/movq_diffusers.py compares values with diffusers.
"""
import functools
import math

import numpy as np
import pytest
import torch

from tests.tokenizer.parameters import count_parameters
from vqim.contracts.context import Context
from vqim.nn.convolution import GroupNorm, SpatialNorm
from vqim.nn.module import apply, arrays_spec, spec, statistics_spec
from vqim.runtime.torch import TorchKernels
from vqim.state.init import full_index
from vqim.tokenizer.cnn import CNNDecoder, CNNEncoder
from vqim.tokenizer.initial import FourierFeatures, LearnedConstant, Sinusoids
from vqim.tokenizer.model import Codes, ImageTokenizer
from vqim.tokenizer.quantizer.multichannel import MultichannelQuantizer

F16 = (1, 1, 2, 2, 4)
TINY = {"channels": 32, "multipliers": (1, 2, 1), "num_blocks": 1, "width": 12}


def make_norm(condition_width):
    return functools.partial(SpatialNorm, condition_width=condition_width)


def make_movq(norm_levels, channels=4, vocabulary=1024):
    return ImageTokenizer(
        CNNEncoder(128, F16, 2, 256), MultichannelQuantizer(256, 256, vocabulary, channels=channels),
        CNNDecoder(128, F16, 2, 256, norm=make_norm(256), norm_levels=norm_levels), image_size=256)


# VQGAN's 72,141,699 with a codebook of 1024 x 64 in place of 1024 x 256; each modulated norm of C channels adds two 1x1
# convolutions of 256 channels, 2 (256 C + C). The paper prints 82.7M; the last is the most that there is to modulate.
VQGAN = 72_141_699 - 1024 * (256 - 64)
MIDDLE = 5 * 512
LEVELS = [9 * 512, 512 + 5 * 256, 6 * 256, 256 + 5 * 128, 6 * 128]


@pytest.mark.parametrize(("norm_levels", "channels", "count"), [
    (0, MIDDLE, 73_260_931), (3, MIDDLE + sum(LEVELS[:3]), 77_340_035),
    (None, MIDDLE + sum(LEVELS) + 128, 78_261_123)])
def test_movqs_parameters_are_vqgans_and_two_1x1_convolutions_a_norm(norm_levels, channels, count):
    model = make_movq(norm_levels)
    assert count_parameters(model) == VQGAN + 2 * 257 * channels == count
    assert model.grid.as_lists() == [[16, 16, 4, 1024]]


def test_all_39_normalisations_can_be_modulated():
    norms = [module for module in make_movq(None).decoder.modules() if isinstance(module, SpatialNorm)]
    assert len(norms) == 39


@pytest.mark.parametrize(("norm_levels", "modulated"), [
    (0, {"middle"}), (1, {"middle", "levels/0"}), (3, {"middle", "levels/0", "levels/1", "levels/2"}),
    (None, {"middle", "levels/0", "levels/1", "levels/2", "head"})])
def test_the_first_levels_are_modulated_and_all_others_are_vqgans(norm_levels, modulated):
    decoder = CNNDecoder(**TINY, norm=make_norm(6), norm_levels=norm_levels)
    found = {name.split("/blocks/")[0].split("/")[0] if not name.startswith("levels") else "/".join(name.split("/")[:2])
             for name in spec(decoder) if "/scale/" in name}
    assert found == modulated
    plain = [module for module in decoder.modules() if isinstance(module, GroupNorm)]
    assert len(plain) == 2 * (2 + 3 * 2) + (1 + 2) + 1  # each SpatialNorm has one within


@pytest.mark.parametrize("norm_levels", [0, 2, None])
def test_vectors_reach_the_image_through_the_norms_alone(draw_params, context, norm_levels):
    decoder = CNNDecoder(**TINY, norm=make_norm(6), norm_levels=norm_levels)
    params, latents = draw_params(decoder), torch.randn(1, 2, 2, 12)
    vectors = torch.randn(1, 2, 2, 6, requires_grad=True)
    apply(decoder.forward, params, Codes(vectors, latents), context).mean_BCHW.square().sum().backward()
    assert (vectors.grad.abs() > 0).all()
    still = {name: torch.zeros_like(array) if "scale/kernel" in name or "shift/kernel" in name else array
             for name, array in params.items()}
    first, second = (apply(decoder.forward, still, Codes(torch.randn(1, 2, 2, 6), latents), context).mean_BCHW
                     for _ in range(2))
    assert torch.equal(first, second)


def test_a_number_of_levels_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="norm_levels must be None, or from 0 to the number of levels 3, got 4"):
        CNNDecoder(**TINY, norm_levels=4)


def draw(module, seed=0):
    return {name: torch.from_numpy(leaf.init(name, leaf.shape, seed, full_index(leaf.shape)))
            for name, leaf in arrays_spec(module).items()}


def test_fourier_features_are_cosines_and_sines_of_fixed_projections_of_the_latents(context):
    module, latents = FourierFeatures(8), torch.randn(2, 3, 4, 8)
    assert spec(module) == {} and set(statistics_spec(module)) == {"frequencies_DF"}
    arrays = draw(module)
    found = apply(module.forward, arrays, latents, context)
    matrix = arrays["frequencies_DF"].double().numpy()
    for place in np.ndindex(2, 3, 4):
        for f in range(4):
            angle = 2 * math.pi * sum(float(latents[place][d]) * matrix[d, f] for d in range(8))
            assert found[place][f].item() == pytest.approx(math.cos(angle), abs=1e-5)
            assert found[place][4 + f].item() == pytest.approx(math.sin(angle), abs=1e-5)


def test_frequencies_keep_the_scale_of_the_latents():
    # Of N(0, 1 / D): a projection of a latent with unit variance has unit variance.
    matrix = draw(FourierFeatures(256))["frequencies_DF"]
    assert matrix.shape == (256, 128) and (matrix.square().sum(0).mean().item() == pytest.approx(1, abs=0.05))


def test_sinusoids_are_those_of_rows_and_columns(context):
    found = apply(Sinusoids(8).forward, {}, torch.full((2, 3, 5, 8), torch.nan), context)
    assert found.shape == (2, 3, 5, 8) and torch.equal(found[0], found[1])
    for row, column in np.ndindex(3, 5):
        expected = [wave(place * 10_000 ** (-4 * i / 8)) for place in (row, column) for i in range(2)
                    for wave in (math.sin, math.cos)]
        assert found[0, row, column].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_learned_constant_is_alike_for_all_images_and_of_one_size(context):
    module = LearnedConstant(6, size=3)
    arrays = draw(module)
    found = apply(module.forward, arrays, torch.full((2, 3, 3, 6), torch.nan), context)
    assert torch.equal(found, arrays["constant_hwD"].expand(2, 3, 3, 6)) and found.std() > 0.5
    with pytest.raises(ValueError, match=r"latents_BhwD must be \[B, 3, 3, 6\], as size and width"):
        apply(module.forward, arrays, torch.zeros(2, 4, 4, 6), context)


@pytest.mark.parametrize(("initial", "reads_latents"), [
    (None, True), (FourierFeatures, True), (Sinusoids, False), (functools.partial(LearnedConstant, size=2), False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_decoder_starts_from_its_first_features(initial, reads_latents, dtype):
    decoder = CNNDecoder(**TINY, norm=make_norm(6), norm_levels=2, initial=initial)
    arrays, context = draw(decoder), Context(TorchKernels(), dtype)
    vectors, latents = torch.randn(2, 2, 2, 6), torch.randn(2, 2, 2, 12)
    image = apply(decoder.forward, arrays, Codes(vectors, latents), context).mean_BCHW
    assert image.shape == (2, 3, 8, 8) and image.isfinite().all()
    other = apply(decoder.forward, arrays, Codes(vectors, torch.randn(2, 2, 2, 12)), context).mean_BCHW
    assert torch.equal(image, other) is not reads_latents


@pytest.mark.parametrize(("make", "message"), [
    (lambda: FourierFeatures(7), "width must be a multiple of 2, sines and cosines side by side; got 7"),
    (lambda: Sinusoids(6), "width must be a multiple of 4, sines and cosines side by side; got 6"),
    (lambda: LearnedConstant(4, size=0), "size must be a whole number of at least 1, got 0")])
def test_first_features_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
