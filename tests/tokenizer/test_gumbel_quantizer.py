"""Gumbel-softmax: draws, their two limits of temperature, gradients and the divergence, against slow NumPy."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqim.contracts.context import Context
from vqim.contracts.grid import Level
from vqim.nn.module import apply, spec
from vqim.optim.schedules import Constant, WarmupCosine
from vqim.runtime.torch import TorchKernels
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.quantizer.gumbel import GumbelQuantizer, divergence_from_uniform
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder


def make_quantizer(**kwargs):
    return GumbelQuantizer(
        **{"width_in": 6, "width_out": 5, "vocabulary": 16, "temperature": Constant(1.0), **kwargs})


class GivenKernels(TorchKernels):
    """Draws that the test knows."""

    def __init__(self, uniform):
        super().__init__()
        self._uniform = uniform

    def uniform(self, key, shape, device):
        assert tuple(self._uniform.shape) == shape
        return self._uniform


def training(temperature=1.0, kernels=None, dtype=torch.float32, seed=0, kl_weight=1.0):
    return Context(kernels or TorchKernels(), dtype, torch.tensor(seed, dtype=torch.int32),
                   {"temperature": torch.tensor(temperature), "kl_weight": torch.tensor(kl_weight)})


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(params, latents, uniform, temperature):
    """(noisy logits, weights) in float64."""
    p = {name: array.double().numpy() for name, array in params.items()}
    logits = latents.double().numpy() @ p["logits/kernel_IO"] + p["logits/bias_O"]
    noisy = logits - np.log(-np.log(uniform.double().numpy()))
    return noisy, softmax(noisy / temperature)


def test_evaluation_takes_the_likeliest_code_and_lookup_gives_the_same_vectors(draw_params, context):
    quantizer = make_quantizer()
    params, latents = draw_params(quantizer), torch.randn(2, 3, 4, 6)
    quantized = apply(quantizer.forward, params, latents, context)
    logits = latents @ params["logits/kernel_IO"] + params["logits/bias_O"]
    indices, = quantized.indices
    assert indices.shape == (2, 3, 4, 1) and torch.equal(indices[..., 0], logits.argmax(-1))
    vectors = params["codebook_VD"][indices[..., 0]]
    for codes in (quantized.codes, apply(quantizer.lookup, params, quantized.indices, context)):
        assert torch.equal(codes.latents_BhwD, vectors) and torch.equal(codes.vectors_BhwZ, vectors)


@pytest.mark.parametrize("temperature", [0.1, 5.0])
def test_training_draws_each_code_as_often_as_its_probability(draw_params, temperature):
    quantizer = make_quantizer(vocabulary=4)
    params = draw_params(quantizer)
    latent = 3 * torch.randn(6)
    probabilities = softmax((latent @ params["logits/kernel_IO"] + params["logits/bias_O"]).double().numpy())
    num_draws = 20000
    quantized = apply(quantizer.forward, params, latent.expand(1, 1, num_draws, 6), training(temperature))
    counts = np.bincount(quantized.indices[0].flatten().numpy(), minlength=4)
    assert probabilities.max() - probabilities.min() > 0.1
    np.testing.assert_array_less(
        abs(counts - num_draws * probabilities), 5 * np.sqrt(num_draws * probabilities * (1 - probabilities)))


@given(st.integers(2, 30), st.integers(0, 2**31))
def test_at_low_temperature_the_mixture_is_the_code_of_the_largest_noisy_logit(vocabulary, seed):
    rng = np.random.default_rng(seed)
    quantizer = make_quantizer(vocabulary=vocabulary, straight_through=False)
    params = {name: torch.from_numpy(rng.normal(size=leaf.shape).astype(np.float32))
              for name, leaf in spec(quantizer).items()}
    latents = torch.from_numpy(rng.normal(size=(1, 2, 3, 6)).astype(np.float32))
    uniform = torch.from_numpy(rng.random((1, 2, 3, vocabulary), np.float32).clip(1e-6))
    quantized = apply(quantizer.forward, params, latents, training(1e-6, GivenKernels(uniform)))
    noisy, _ = reference(params, latents, uniform, 1.0)
    largest = np.sort(noisy, -1)
    clear = largest[..., -1] - largest[..., -2] > 1e-4  # of equally large ones either will do
    np.testing.assert_array_equal(quantized.indices[0][..., 0].numpy()[clear], noisy.argmax(-1)[clear])
    vectors = params["codebook_VD"].numpy()[noisy.argmax(-1)]
    np.testing.assert_allclose(quantized.codes.latents_BhwD.numpy()[clear], vectors[clear], rtol=1e-5, atol=1e-5)


def test_at_high_temperature_the_mixture_is_the_mean_of_all_codes(draw_params):
    quantizer = make_quantizer(straight_through=False)
    params = draw_params(quantizer)
    quantized = apply(quantizer.forward, params, torch.randn(1, 2, 3, 6), training(1e6))
    expected = params["codebook_VD"].mean(0).expand(1, 2, 3, 5)
    torch.testing.assert_close(quantized.codes.latents_BhwD, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_straight_through_the_decoder_sees_codes_at_any_temperature(draw_params, temperature):
    quantizer = make_quantizer()
    params, context = draw_params(quantizer), training(temperature)
    quantized = apply(quantizer.forward, params, torch.randn(2, 3, 4, 6), context)
    expected = apply(quantizer.lookup, params, quantized.indices, context)
    torch.testing.assert_close(quantized.codes.latents_BhwD, expected.latents_BhwD, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(quantized.codes.vectors_BhwZ, expected.vectors_BhwZ, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("straight_through", [True, False])
def test_gradients_are_those_of_the_mixture(draw_params, straight_through):
    quantizer, temperature = make_quantizer(straight_through=straight_through), 0.7
    params = {name: array.requires_grad_() for name, array in draw_params(quantizer).items()}
    latents, uniform, g = torch.randn(1, 2, 2, 6, requires_grad=True), torch.rand(1, 2, 2, 16), torch.randn(1, 2, 2, 5)
    quantized = apply(quantizer.forward, params, latents, training(temperature, GivenKernels(uniform)))
    (quantized.codes.latents_BhwD * g).sum().backward()
    noisy, weights = reference({name: array.detach() for name, array in params.items()}, latents.detach(), uniform,
                               temperature)
    codes, kernel = (params[name].detach().double().numpy() for name in ("codebook_VD", "logits/kernel_IO"))
    by_codes = np.zeros_like(codes)
    for place in np.ndindex(1, 2, 2):
        w, by_vector = weights[place], g[place].double().numpy()
        by_logits = (np.diag(w) - np.outer(w, w)) @ codes @ by_vector / temperature
        np.testing.assert_allclose(latents.grad[place], kernel @ by_logits, rtol=1e-3, atol=1e-5)
        used = np.eye(16)[noisy[place].argmax()] if straight_through else w
        by_codes += np.outer(used, by_vector)
    np.testing.assert_allclose(params["codebook_VD"].grad, by_codes, rtol=1e-3, atol=1e-5)


@given(st.integers(1, 50), st.floats(0, 30), st.integers(0, 2**31))
def test_the_divergence_is_the_expected_logarithm_of_the_ratio_to_uniform(vocabulary, scale, seed):
    logits = (scale * np.random.default_rng(seed).normal(size=(3, vocabulary))).astype(np.float32)
    q = softmax(logits.astype(np.float64))
    expected = (q * np.log(np.maximum(q, 1e-300) * vocabulary)).sum(-1)
    found = divergence_from_uniform(torch.from_numpy(logits)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (found > -1e-5).all() and (found < math.log(vocabulary) + 1e-5).all()


def test_the_divergence_counts_with_its_weight_as_a_mean_over_positions(draw_params, context):
    quantizer = make_quantizer()
    params, latents = draw_params(quantizer), torch.randn(2, 3, 4, 6)
    logits = latents @ params["logits/kernel_IO"] + params["logits/bias_O"]
    losses = apply(quantizer.forward, params, latents, training(kl_weight=0.3)).losses
    assert set(losses) == {"kl"} and apply(quantizer.forward, params, latents, context).losses == {}
    torch.testing.assert_close(losses["kl"], 0.3 * divergence_from_uniform(logits).mean())


def test_the_weight_of_the_divergence_is_a_number_or_a_ramp():
    ramp = make_quantizer(kl_weight=Constant(0.3, warmup_steps=4))
    assert [ramp.host_scalars(step)["kl_weight"] for step in (0, 1, 3, 9)] == pytest.approx([0.075, 0.15, 0.3, 0.3])
    assert make_quantizer(kl_weight=0.2).host_scalars(7)["kl_weight"] == 0.2


def test_without_a_projection_latents_are_the_logits(draw_params, context):
    quantizer = make_quantizer(width_in=16, project=False)
    assert {name: leaf.shape for name, leaf in spec(quantizer).items()} == {"codebook_VD": (16, 5)}
    latents = torch.randn(2, 3, 4, 16)
    quantized = apply(quantizer.forward, draw_params(quantizer), latents, context)
    assert torch.equal(quantized.indices[0][..., 0], latents.argmax(-1))


def test_a_draw_is_a_function_of_the_key(draw_params):
    quantizer = make_quantizer()
    params, latents = draw_params(quantizer), torch.randn(2, 8, 8, 6)
    first, again, other = (
        apply(quantizer.forward, params, latents, training(seed=seed)).indices[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_logits_are_float32_in_a_bfloat16_model(draw_params):
    quantizer = make_quantizer(width_in=512, vocabulary=512, project=False, straight_through=False)
    # Logits 0.001 apart: bfloat16 would take many of them for one.
    latents = (4 + torch.arange(512) * 1e-3).expand(1, 1, 1, 512)
    uniform = torch.full((1, 1, 1, 512), 0.5)
    quantized = apply(quantizer.forward, draw_params(quantizer), latents,
                      training(1e-4, GivenKernels(uniform), torch.bfloat16))
    assert quantized.indices[0].item() == 511
    assert quantized.codes.latents_BhwD.dtype == torch.bfloat16 and quantized.losses["kl"].dtype == torch.float32


def make_tokenizer(quantizer):
    return ImageTokenizer(ViTEncoder(8, 4, 6, 1, 2, 8), quantizer, ViTDecoder(8, 4, 5, 1, 1, 8), image_size=8)


def test_the_temperature_of_a_step_reaches_the_quantizer_through_the_tokenizer(draw_params):
    tokenizer = make_tokenizer(make_quantizer(straight_through=False, temperature=WarmupCosine(1.0, 1 / 16, 0, 100)))
    assert tokenizer.grid.levels == (Level(2, 2, 1, 16),)
    assert tokenizer.host_scalars(0) == {"quantizer/temperature": 1.0, "quantizer/kl_weight": 5e-4}
    assert tokenizer.host_scalars(50)["quantizer/temperature"] == pytest.approx((1 + 1 / 16) / 2)
    assert tokenizer.host_scalars(10**6)["quantizer/temperature"] == pytest.approx(1 / 16)
    params, images = draw_params(tokenizer), torch.rand(1, 3, 8, 8)

    def encode(temperature):
        scalars = {"quantizer/temperature": torch.tensor(temperature), "quantizer/kl_weight": torch.tensor(1.0)}
        context = Context(TorchKernels(), key=torch.tensor(0, dtype=torch.int32), scalars=scalars)
        return apply(tokenizer.encode, params, images, context).codes.latents_BhwD

    cold, warm = encode(1e-6), encode(100.0)
    codes = params["quantizer/codebook_VD"]
    assert (cold[..., None, :] - codes).abs().amax(-1).amin(-1).max() < 1e-5
    assert (warm - codes.mean(0)).abs().max() < 0.05


@pytest.mark.parametrize(("arguments", "message"), [
    ({"vocabulary": 0}, "vocabulary must be a whole number of at least 1, got 0"),
    ({"project": False}, "width_in must be vocabulary = 16 where latents are not projected to logits, got 6"),
    ({"temperature": Constant(0.0)}, "temperature must be above 0, got 0.0 at step 0"),
    ({"kl_weight": -1.0}, "kl_weight must be at least 0, got -1.0"),
])
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_quantizer(**arguments)
