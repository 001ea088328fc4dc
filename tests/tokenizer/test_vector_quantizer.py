"""Vector quantisation: nearest codes, equation (1), straight-through gradients, against slow NumPy."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqim.contracts.context import Context
from vqim.nn.module import apply
from vqim.runtime.precision import split_matmul
from vqim.runtime.torch import TorchKernels
from vqim.tokenizer.quantizer.vector import VectorQuantizer, l2_normalize, nearest_code

BETA = 0.3


def make_quantizer(normalize=True, **kwargs):
    return VectorQuantizer(**{"width_in": 6, "width_out": 5, "vocabulary": 16, "code_dim": 3, "normalize": normalize,
                              "commitment_weight": BETA, **kwargs})


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference(params, latents, normalize):
    """(indices, projected latents before normalisation, z, e) by equation (1)'s argmin, in float64."""
    p = {name: array.double().numpy() for name, array in params.items()}
    projected = latents.double().numpy() @ p["project_in/kernel_IO"] + p["project_in/bias_O"]
    place = unit if normalize else (lambda x: x)
    z, codes = place(projected), place(p["codebook_VZ"])
    indices = ((z[..., None, :] - codes) ** 2).sum(-1).argmin(-1)
    return indices, projected, z, codes[indices]


def jacobian_of_unit(x):
    """d unit(x) / dx of one vector: (I - u u^T) / |x|."""
    u = unit(x)
    return (np.eye(len(x)) - np.outer(u, u)) / np.linalg.norm(x)


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 20), st.floats(0.1, 10), st.integers(0, 2**31))
def test_the_code_found_is_the_nearest(vocabulary, code_dim, num_latents, scale, seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(num_latents, code_dim)).astype(np.float32)
    codes = (scale * rng.normal(size=(vocabulary, code_dim))).astype(np.float32)
    found = nearest_code(torch.from_numpy(z), torch.from_numpy(codes), TorchKernels()).numpy()
    distances = ((z[:, None].astype(np.float64) - codes) ** 2).sum(-1)
    of_found = np.take_along_axis(distances, found[:, None], 1)[:, 0]
    rounding = 1e-5 * (1 + np.square(codes, dtype=np.float64).sum(-1).max())
    np.testing.assert_array_less(of_found, distances.min(1) + rounding)  # of two equally near codes either will do


def test_a_latent_on_a_code_finds_it():
    codes = torch.randn(50, 4)
    assert nearest_code(codes.reshape(5, 10, 4), codes, TorchKernels()).flatten().tolist() == list(range(50))


def test_nearest_on_the_sphere_is_largest_cosine(draw_params, context):
    quantizer = make_quantizer()
    params, latents = draw_params(quantizer), torch.randn(2, 3, 4, 6)
    params["codebook_VZ"] = params["codebook_VZ"] * torch.linspace(0.1, 10, 16)[:, None]  # lengths do not count
    z = latents @ params["project_in/kernel_IO"] + params["project_in/bias_O"]
    cosine = torch.cosine_similarity(z[..., None, :], params["codebook_VZ"], dim=-1)
    quantized = apply(quantizer.forward, params, latents, context)
    indices, = quantized.indices
    assert indices.shape == (2, 3, 4, 1)
    assert torch.equal(indices[..., 0], cosine.argmax(-1))


@pytest.mark.parametrize("normalize", [True, False])
def test_indices_latents_and_losses_are_equation_1s(draw_params, context, normalize):
    quantizer = make_quantizer(normalize)
    params, latents = draw_params(quantizer), torch.randn(2, 3, 4, 6)
    quantized = apply(quantizer.forward, params, latents, context)
    indices, _, z, e = reference(params, latents, normalize)
    np.testing.assert_array_equal(quantized.indices[0][..., 0], indices)
    assert quantized.indices[0].dtype == torch.int64
    squared = ((z - e) ** 2).sum() / (2 * 3 * 4 * 3)  # the mean over 24 positions and 3 dimensions
    assert quantized.losses["codebook"].item() == pytest.approx(squared, rel=1e-4)
    assert quantized.losses["commitment"].item() == pytest.approx(BETA * squared, rel=1e-4)
    assert set(quantized.losses) == {"codebook", "commitment"}
    decoded = e @ params["project_out/kernel_IO"].double().numpy() + params["project_out/bias_O"].double().numpy()
    np.testing.assert_allclose(quantized.codes.latents_BhwD, decoded, rtol=1e-4, atol=1e-5)


def test_losses_do_not_grow_with_the_number_of_dimensions(context):
    # Latents one above their only code in every dimension.
    for code_dim in (1, 4, 256):
        quantizer = make_quantizer(False, width_in=code_dim, width_out=code_dim, vocabulary=1, code_dim=None)
        losses = apply(quantizer.forward, {"codebook_VZ": torch.zeros(1, code_dim)}, torch.ones(2, 1, 1, code_dim),
                       context).losses
        assert losses["codebook"] == 1 and losses["commitment"].item() == pytest.approx(BETA)


@pytest.mark.parametrize("normalize", [True, False])
def test_lookup_gives_the_vectors_that_quantising_gave(draw_params, context, normalize):
    quantizer = make_quantizer(normalize)
    params = draw_params(quantizer)
    quantized = apply(quantizer.forward, params, torch.randn(2, 3, 4, 6), context)
    found = apply(quantizer.lookup, params, quantized.indices, context)
    torch.testing.assert_close(found.latents_BhwD, quantized.codes.latents_BhwD, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.vectors_BhwZ, quantized.codes.vectors_BhwZ, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_the_codebooks_at_the_codes_that_were_found(draw_params, context, normalize):
    quantizer = make_quantizer(normalize)
    params = draw_params(quantizer)
    quantized = apply(quantizer.forward, params, torch.randn(2, 3, 4, 6), context)
    codes = params["codebook_VZ"].double().numpy()
    expected = (unit(codes) if normalize else codes)[quantized.indices[0][..., 0]]
    np.testing.assert_allclose(quantized.codes.vectors_BhwZ, expected, rtol=1e-5, atol=1e-6)


def test_codes_that_are_not_factorised_are_not_widened(draw_params, context):
    quantizer = make_quantizer(width_out=6, code_dim=None)
    codes = apply(quantizer.forward, draw_params(quantizer), torch.randn(2, 3, 4, 6), context).codes
    assert codes.vectors_BhwZ.shape == (2, 3, 4, 6) and torch.equal(codes.vectors_BhwZ, codes.latents_BhwD)


def gradients(quantizer, params, latents, context, of):
    """Gradients of `of(quantized)` by the latents and by every parameter."""
    leaves = {name: array.clone().requires_grad_() for name, array in params.items()}
    latents = latents.clone().requires_grad_()
    of(apply(quantizer.forward, leaves, latents, context)).backward()
    grads = {name: array.grad for name, array in leaves.items()}
    return latents.grad, grads


@pytest.mark.parametrize("normalize", [True, False])
def test_the_decoders_gradient_passes_straight_through_the_lookup(draw_params, context, normalize):
    quantizer = make_quantizer(normalize)
    params, latents, weights = draw_params(quantizer), torch.randn(1, 2, 2, 6), torch.randn(1, 2, 2, 5)
    by_latents, by_params = gradients(
        quantizer, params, latents, context, lambda quantized: (quantized.codes.latents_BhwD * weights).sum())
    _, projected, _, _ = reference(params, latents, normalize)
    kernel_in, kernel_out = (params[f"project_{side}/kernel_IO"].double().numpy() for side in ("in", "out"))
    for place in np.ndindex(1, 2, 2):
        by_found = kernel_out @ weights[place].double().numpy()
        by_projected = jacobian_of_unit(projected[place]) @ by_found if normalize else by_found
        np.testing.assert_allclose(by_latents[place], kernel_in @ by_projected, rtol=1e-4, atol=1e-5)
    assert by_params["codebook_VZ"] is None or not by_params["codebook_VZ"].any()


@pytest.mark.parametrize("normalize", [True, False])
def test_the_codebook_term_moves_codes_alone_with_weight_one(draw_params, context, normalize):
    quantizer = make_quantizer(normalize)
    params, latents = draw_params(quantizer), torch.randn(1, 2, 2, 6)
    by_latents, by_params = gradients(
        quantizer, params, latents, context, lambda quantized: quantized.losses["codebook"])
    assert by_latents is None or not by_latents.any()
    indices, _, z, e = reference(params, latents, normalize)
    codes = params["codebook_VZ"].double().numpy()
    expected = np.zeros_like(codes)
    for place in np.ndindex(1, 2, 2):
        by_code = 2 * (e[place] - z[place]) / (4 * 3)  # the mean over four positions and three dimensions
        code = indices[place]
        expected[code] += jacobian_of_unit(codes[code]) @ by_code if normalize else by_code
    np.testing.assert_allclose(by_params["codebook_VZ"], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_commitment_term_moves_latents_alone_with_weight_beta(draw_params, context, normalize):
    quantizer = make_quantizer(normalize)
    params, latents = draw_params(quantizer), torch.randn(1, 2, 2, 6)
    by_latents, by_params = gradients(
        quantizer, params, latents, context, lambda quantized: quantized.losses["commitment"])
    assert by_params["codebook_VZ"] is None or not by_params["codebook_VZ"].any()
    _, projected, z, e = reference(params, latents, normalize)
    for place in np.ndindex(1, 2, 2):
        by_z = BETA * 2 * (z[place] - e[place]) / (4 * 3)
        by_projected = jacobian_of_unit(projected[place]) @ by_z if normalize else by_z
        expected = params["project_in/kernel_IO"].double().numpy() @ by_projected
        np.testing.assert_allclose(by_latents[place], expected, rtol=1e-3, atol=1e-5)


def test_normalised_vectors_have_length_one_at_any_scale():
    x = torch.randn(100, 8) * torch.logspace(-3, 6, 100)[:, None]
    torch.testing.assert_close(torch.linalg.vector_norm(l2_normalize(x), dim=-1), torch.ones(100), rtol=1e-5, atol=0)


def test_a_zero_vector_stays_zero_with_a_finite_gradient():
    x = torch.zeros(3, requires_grad=True)
    out = l2_normalize(x)
    out.sum().backward()
    assert not out.any() and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("normalize", [True, False])
def test_the_lookup_is_float32_in_a_bfloat16_model(draw_params, normalize):
    # 512 codes on a circle lie 0.012 apart; bfloat16's steps near one are 0.004 to 0.008, and products are worse.
    quantizer = make_quantizer(normalize, width_in=2, code_dim=2, vocabulary=512)
    angles = torch.arange(512) * (2 * torch.pi / 512)
    params = draw_params(quantizer)
    params["codebook_VZ"] = torch.stack([angles.cos(), angles.sin()], -1)
    params["project_in/kernel_IO"], params["project_in/bias_O"] = torch.eye(2), torch.zeros(2)
    latents = torch.randn(1, 20, 20, 2).bfloat16()  # exactly representable, so that the projection changes nothing
    quantized = apply(quantizer.forward, params, latents, Context(TorchKernels(), torch.bfloat16))
    z = unit(latents.double().numpy())
    nearest = (z @ params["codebook_VZ"].double().numpy().T).argmax(-1)
    np.testing.assert_array_equal(quantized.indices[0][..., 0], nearest)
    assert quantized.codes.latents_BhwD.dtype == quantized.codes.vectors_BhwZ.dtype == torch.bfloat16
    assert quantized.losses["codebook"].dtype == torch.float32


class SplitKernels(TorchKernels):
    """A TPU's product."""

    def precise_matmul(self, a, b):
        return split_matmul(a, b)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_tpus_product_finds_the_codes_that_float32s_does(draw_params, context, normalize):
    quantizer = make_quantizer(normalize, vocabulary=512)
    params, latents = draw_params(quantizer), torch.randn(4, 16, 16, 6)
    expected = apply(quantizer.forward, params, latents, context).indices[0]
    found = apply(quantizer.forward, params, latents, Context(SplitKernels())).indices[0]
    assert (found != expected).sum() <= 1  # two codes may lie equally near

    rounded = Context(SplitKernels())
    rounded.kernels.precise_matmul = lambda a, b: a.bfloat16().float() @ b.bfloat16().float()
    assert (apply(quantizer.forward, params, latents, rounded).indices[0] != expected).sum() > 10


@pytest.mark.parametrize(("arguments", "message"), [
    ({"vocabulary": 0}, "vocabulary must be a whole number of at least 1, got 0"),
    ({"code_dim": -3}, "code_dim must be a whole number of at least 1, got -3"),
    ({"commitment_weight": -0.25}, "commitment_weight must be at least 0, got -0.25"),
])
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_quantizer(**arguments)
