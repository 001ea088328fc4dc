"""Multichannel quantisation against loops in float64: nearest codes of chunks, equation (3), gradients."""
import numpy as np
import pytest
import torch

from tests.tokenizer.gradients import gradients
from tests.tokenizer.parameters import count_parameters
from vqim.contracts.context import Context
from vqim.contracts.grid import Level, TokenGrid
from vqim.nn.module import apply
from vqim.runtime.torch import TorchKernels
from vqim.tokenizer.quantizer.multichannel import MultichannelQuantizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer

BETA, OF_CODEBOOK = 0.3, 0.7


def make_quantizer(channels=3, **kwargs):
    return MultichannelQuantizer(**{
        "width_in": 7, "width_out": 5, "vocabulary": 16, "code_dim": 12, "channels": channels,
        "codebook_weight": OF_CODEBOOK, "commitment_weight": BETA, **kwargs})


def reference(params, latents, channels):
    """(indices_BhwK, z, e), both [B, h, w, 12], by a loop over positions, chunks and codes in float64."""
    p = {name: array.double().numpy() for name, array in params.items()}
    z = latents.double().numpy() @ p["project_in/kernel_IO"] + p["project_in/bias_O"]
    indices, e, chunk = np.zeros((*z.shape[:3], channels), int), np.zeros_like(z), 12 // channels
    for place in np.ndindex(z.shape[:3]):
        for k in range(channels):
            part = slice(k * chunk, (k + 1) * chunk)
            distances = [((z[place][part] - code) ** 2).sum() for code in p["codebook_VZ"]]
            indices[(*place, k)] = np.argmin(distances)
            e[place][part] = p["codebook_VZ"][np.argmin(distances)]
    return indices, z, e


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_codes_vectors_and_losses_are_those_of_a_loop_over_chunks(draw_params, context, channels):
    quantizer = make_quantizer(channels)
    params, latents = draw_params(quantizer), torch.randn(2, 3, 4, 7)
    quantized = apply(quantizer.forward, params, latents, context)
    indices, z, e = reference(params, latents, channels)
    np.testing.assert_array_equal(quantized.indices[0], indices)
    np.testing.assert_allclose(quantized.codes.vectors_BhwZ, e, rtol=1e-5, atol=1e-6)
    decoded = e @ params["project_out/kernel_IO"].double().numpy() + params["project_out/bias_O"].double().numpy()
    np.testing.assert_allclose(quantized.codes.latents_BhwD, decoded, rtol=1e-4, atol=1e-5)
    squared = ((z - e) ** 2).mean()
    assert quantized.losses["codebook"].item() == pytest.approx(OF_CODEBOOK * squared, rel=1e-4)
    assert quantized.losses["commitment"].item() == pytest.approx(BETA * squared, rel=1e-4)


def test_channels_share_the_codebook_and_swapping_chunks_swaps_codes(draw_params, context):
    quantizer = make_quantizer(3, width_in=12)
    params, latents = draw_params(quantizer), torch.randn(2, 3, 4, 12)
    params |= {"project_in/kernel_IO": torch.eye(12), "project_in/bias_O": torch.zeros(12)}
    plain, = apply(quantizer.forward, params, latents, context).indices
    swapped, = apply(quantizer.forward, params, latents.roll(4, -1), context).indices
    assert torch.equal(swapped, plain.roll(1, -1)) and not torch.equal(swapped, plain)


def test_one_channel_is_vqgans_quantizer(draw_params, context):
    quantizer = make_quantizer(1, codebook_weight=1.0)
    plain = VectorQuantizer(7, 5, 16, code_dim=12, normalize=False, commitment_weight=BETA)
    params, latents = draw_params(quantizer), torch.randn(2, 3, 4, 7)
    found, expected = (apply(module.forward, params, latents, context) for module in (quantizer, plain))
    assert torch.equal(found.indices[0], expected.indices[0])
    assert torch.equal(found.codes.latents_BhwD, expected.codes.latents_BhwD)
    assert found.losses == expected.losses


def test_lookup_of_the_codes_found_gives_what_quantising_gave(draw_params, context):
    quantizer = make_quantizer()
    params = draw_params(quantizer)
    quantized = apply(quantizer.forward, params, torch.randn(2, 3, 4, 7), context)
    found = apply(quantizer.lookup, params, quantized.indices, context)
    torch.testing.assert_close(found.latents_BhwD, quantized.codes.latents_BhwD, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.vectors_BhwZ, quantized.codes.vectors_BhwZ, rtol=1e-5, atol=1e-6)


def test_the_grid_has_a_channel_for_each_chunk():
    levels = make_quantizer(4).levels(6, 5)
    assert levels == (Level(6, 5, 4, 16),) and TokenGrid(levels).num_channels == 4


def test_the_decoders_gradients_pass_straight_through_to_the_latents(draw_params, context):
    quantizer = make_quantizer()
    params, latents = draw_params(quantizer), torch.randn(1, 2, 2, 7)
    by_decoder, by_norms = torch.randn(1, 2, 2, 5), torch.randn(1, 2, 2, 12)
    by_latents, by_params = gradients(
        quantizer, params, latents, context, lambda quantized: (
            (quantized.codes.latents_BhwD * by_decoder).sum() + (quantized.codes.vectors_BhwZ * by_norms).sum()))
    by_vectors = by_decoder @ params["project_out/kernel_IO"].mT + by_norms
    torch.testing.assert_close(by_latents, by_vectors @ params["project_in/kernel_IO"].mT, rtol=1e-4, atol=1e-5)
    assert not by_params["codebook_VZ"].any()


def test_the_codebook_term_moves_codes_alone(draw_params, context):
    quantizer = make_quantizer()
    params, latents = draw_params(quantizer), torch.randn(1, 2, 2, 7)
    by_latents, by_params = gradients(quantizer, params, latents, context, lambda found: found.losses["codebook"])
    indices, z, e = reference(params, latents, 3)
    expected = np.zeros((16, 4))
    for place in np.ndindex(1, 2, 2, 3):
        part = slice(4 * place[-1], 4 * place[-1] + 4)
        expected[indices[place]] += OF_CODEBOOK * 2 * (e[place[:3]][part] - z[place[:3]][part]) / (4 * 12)
    np.testing.assert_allclose(by_params["codebook_VZ"], expected, rtol=1e-3, atol=1e-6)
    assert not by_latents.any() and not by_params["project_in/kernel_IO"].any()


def test_the_commitment_term_moves_latents_alone(draw_params, context):
    quantizer = make_quantizer()
    params, latents = draw_params(quantizer), torch.randn(1, 2, 2, 7)
    by_latents, by_params = gradients(quantizer, params, latents, context, lambda found: found.losses["commitment"])
    _, z, e = reference(params, latents, 3)
    expected = BETA * 2 * (z - e) / (4 * 12) @ params["project_in/kernel_IO"].double().numpy().T
    np.testing.assert_allclose(by_latents, expected, rtol=1e-3, atol=1e-6)
    assert not by_params["codebook_VZ"].any()


def test_a_decoder_that_reads_vectors_alone_gets_them_unprojected(draw_params, context):
    quantizer = make_quantizer(width_out=12, project_out=False)
    params = draw_params(quantizer)
    assert not [name for name in params if name.startswith("project_out/")]
    codes = apply(quantizer.forward, params, torch.randn(2, 3, 4, 7), context).codes
    assert torch.equal(codes.latents_BhwD, codes.vectors_BhwZ) and codes.vectors_BhwZ.shape[-1] == 12


def test_the_lookup_is_float32_in_a_bfloat16_model(draw_params):
    # 512 codes on a circle lie 0.012 apart; bfloat16's steps near one are 0.004 to 0.008, and products are worse.
    quantizer = make_quantizer(2, width_in=4, code_dim=4, vocabulary=512)
    angles = torch.arange(512) * (2 * torch.pi / 512)
    params = draw_params(quantizer)
    params |= {"codebook_VZ": torch.stack([angles.cos(), angles.sin()], -1), "project_in/bias_O": torch.zeros(4),
               "project_in/kernel_IO": torch.eye(4)}
    latents = torch.randn(1, 20, 20, 4).bfloat16()  # exactly representable, so that the projection changes nothing
    quantized = apply(quantizer.forward, params, latents, Context(TorchKernels(), torch.bfloat16))
    z = latents.double().numpy().reshape(1, 20, 20, 2, 2)
    nearest = ((z[..., None, :] - params["codebook_VZ"].double().numpy()) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(quantized.indices[0], nearest)
    assert quantized.codes.latents_BhwD.dtype == quantized.codes.vectors_BhwZ.dtype == torch.bfloat16


@pytest.mark.parametrize(("channels", "vocabulary"), [(1, 1024), (2, 1024), (4, 1024), (8, 1024), (4, 16384)])
def test_256_dimensions_in_c_chunks_need_a_codebook_of_256_over_c(channels, vocabulary):
    quantizer = MultichannelQuantizer(256, 256, vocabulary, channels=channels)
    assert count_parameters(quantizer) == vocabulary * 256 // channels + 2 * (256 * 256 + 256)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"channels": 5}, "code_dim must be a multiple of channels = 5, its chunks; got 12"),
    ({"channels": 0}, "channels must be a whole number of at least 1, got 0"),
    ({"codebook_weight": -1.0}, "codebook_weight must be at least 0, got -1.0"),
    ({"commitment_weight": -0.25}, "commitment_weight must be at least 0, got -0.25"),
    ({"ema_decay": 1.0}, "ema_decay must be None, or at least 0 and less than 1, got 1.0"),
    ({"project_out": False}, "width_out must be code_dim = 12 where vectors are not projected, got 5"),
])
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_quantizer(**arguments)
