"""Residual quantisation against loops in float64: codes of what is left, partial sums in both losses, lookup."""
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from tests.tokenizer.gradients import gradients
from tests.tokenizer.parameters import count_parameters
from vqim.contracts.context import Context
from vqim.contracts.grid import Level
from vqim.nn.module import apply
from vqim.runtime.torch import TorchKernels
from vqim.tokenizer.quantizer.residual import ResidualQuantizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer

BETA, OF_CODEBOOK, DIM = 0.3, 0.7, 6


def make_quantizer(depth=3, **kwargs):
    return ResidualQuantizer(**{
        "width_in": 7, "width_out": 5, "vocabulary": 16, "code_dim": DIM, "depth": depth,
        "codebook_weight": OF_CODEBOOK, "commitment_weight": BETA, **kwargs})


def reference(params, latents, depth):
    """(indices_BhwK, z_BhwZ, sums_BhwKZ of the first codes) by a loop over positions and depths in float64."""
    p = {name: array.double().numpy() for name, array in params.items()}
    z = latents.double().numpy() @ p["project_in/kernel_IO"] + p["project_in/bias_O"]
    indices, sums = np.zeros((*z.shape[:3], depth), int), np.zeros((*z.shape[:3], depth, z.shape[-1]))
    for place in np.ndindex(z.shape[:3]):
        total = np.zeros(z.shape[-1])
        for k in range(depth):
            distances = [((z[place] - total - code) ** 2).sum() for code in p["codebook_VZ"]]
            indices[(*place, k)] = np.argmin(distances)
            total = total + p["codebook_VZ"][np.argmin(distances)]
            sums[(*place, k)] = total
    return indices, z, sums


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_codes_sums_and_losses_are_those_of_a_loop_over_depths(draw_params, context, depth):
    quantizer = make_quantizer(depth)
    params, latents = draw_params(quantizer), torch.randn(2, 3, 4, 7)
    quantized = apply(quantizer.forward, params, latents, context)
    indices, z, sums = reference(params, latents, depth)
    np.testing.assert_array_equal(quantized.indices[0], indices)
    np.testing.assert_allclose(quantized.codes.vectors_BhwZ, sums[..., -1, :], rtol=1e-4, atol=1e-5)
    squared = ((z[..., None, :] - sums) ** 2).mean()  # over depths too, as in the authors' code
    assert quantized.losses["codebook"].item() == pytest.approx(OF_CODEBOOK * squared, rel=1e-4)
    assert quantized.losses["commitment"].item() == pytest.approx(BETA * squared, rel=1e-4)


def test_a_depth_of_one_is_vqgans_quantizer(draw_params, context):
    quantizer = make_quantizer(1, codebook_weight=1.0)
    plain = VectorQuantizer(7, 5, 16, code_dim=DIM, normalize=False, commitment_weight=BETA)
    params, latents = draw_params(quantizer), torch.randn(2, 3, 4, 7)
    found, expected = (apply(module.forward, params, latents, context) for module in (quantizer, plain))
    assert torch.equal(found.indices[0], expected.indices[0])
    torch.testing.assert_close(found.codes.latents_BhwD, expected.codes.latents_BhwD)
    assert found.losses == expected.losses


@given(st.integers(1, 6), st.integers(1, 12), st.floats(0.1, 3), st.integers(0, 2**31))
def test_with_a_code_of_zeros_the_error_never_grows_with_depth(depth, vocabulary, scale, seed):
    # Without one it may: the best of the codes can be worse than none.
    generator = torch.Generator().manual_seed(seed)
    quantizer = make_quantizer(depth, width_in=DIM, vocabulary=vocabulary)
    codebook = scale * torch.randn(vocabulary, DIM, generator=generator)
    codebook[0] = 0
    params = {"project_in/kernel_IO": torch.eye(DIM), "project_in/bias_O": torch.zeros(DIM), "codebook_VZ": codebook,
              "project_out/kernel_IO": torch.zeros(DIM, 5), "project_out/bias_O": torch.zeros(5)}
    latents = torch.randn(1, 3, 3, DIM, generator=generator)
    indices, = apply(quantizer.forward, params, latents, Context(TorchKernels())).indices
    errors = (latents[..., None, :] - codebook[indices].cumsum(-2)).square().sum(-1)
    errors = torch.cat([latents.square().sum(-1, keepdim=True), errors], -1)
    assert (errors.diff(dim=-1) <= 1e-5 * (1 + errors[..., 1:])).all()


def test_lookup_of_the_codes_found_gives_what_quantising_gave(draw_params, context):
    quantizer = make_quantizer(4)
    params = draw_params(quantizer)
    quantized = apply(quantizer.forward, params, torch.randn(2, 3, 4, 7), context)
    found = apply(quantizer.lookup, params, quantized.indices, context)
    torch.testing.assert_close(found.latents_BhwD, quantized.codes.latents_BhwD, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.vectors_BhwZ, quantized.codes.vectors_BhwZ, rtol=1e-5, atol=1e-5)


def test_the_grid_has_a_channel_for_each_depth():
    assert make_quantizer(16).levels(8, 8) == (Level(8, 8, 16, 16),)


def test_the_decoders_gradient_passes_straight_through_all_depths(draw_params, context):
    quantizer = make_quantizer()
    params, latents, weights = draw_params(quantizer), torch.randn(1, 2, 2, 7), torch.randn(1, 2, 2, 5)
    by_latents, by_params = gradients(
        quantizer, params, latents, context, lambda quantized: (quantized.codes.latents_BhwD * weights).sum())
    expected = weights @ params["project_out/kernel_IO"].mT @ params["project_in/kernel_IO"].mT
    torch.testing.assert_close(by_latents, expected, rtol=1e-4, atol=1e-5)
    assert not by_params["codebook_VZ"].any()


def test_the_commitment_term_pulls_latents_to_every_partial_sum_alone(draw_params, context):
    quantizer = make_quantizer()
    params, latents = draw_params(quantizer), torch.randn(1, 2, 2, 7)
    by_latents, by_params = gradients(quantizer, params, latents, context, lambda found: found.losses["commitment"])
    _, z, sums = reference(params, latents, 3)
    by_z = BETA * 2 * (z[..., None, :] - sums).sum(-2) / (3 * 4 * DIM)
    expected = by_z @ params["project_in/kernel_IO"].double().numpy().T
    np.testing.assert_allclose(by_latents, expected, rtol=1e-3, atol=1e-6)
    assert not by_params["codebook_VZ"].any()


def test_the_codebook_term_moves_each_code_by_all_sums_that_it_is_in(draw_params, context):
    quantizer = make_quantizer()
    params, latents = draw_params(quantizer), torch.randn(1, 2, 2, 7)
    by_latents, by_params = gradients(quantizer, params, latents, context, lambda found: found.losses["codebook"])
    indices, z, sums = reference(params, latents, 3)
    expected = np.zeros((16, DIM))
    for place in np.ndindex(1, 2, 2):
        for d in range(3):
            for k in range(d + 1):
                expected[indices[(*place, k)]] += OF_CODEBOOK * 2 * (sums[(*place, d)] - z[place]) / (3 * 4 * DIM)
    np.testing.assert_allclose(by_params["codebook_VZ"], expected, rtol=1e-3, atol=1e-6)
    assert not by_latents.any()


def test_depth_costs_no_parameters():
    sizes = {count_parameters(ResidualQuantizer(256, 256, 2048, depth=depth)) for depth in (1, 4, 16)}
    assert sizes == {2048 * 256 + 2 * (256 * 256 + 256)}


@pytest.mark.parametrize(("arguments", "message"), [
    ({"depth": 0}, "depth must be a whole number of at least 1, got 0"),
    ({"code_dim": 0}, "code_dim must be a whole number of at least 1, got 0"),
    ({"restart_below": 1.0}, "restart_below must be at least 0 and less than 1"),
])
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_quantizer(**arguments)
