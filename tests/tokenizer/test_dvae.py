"""DALL-E's dVAE: its size, its shapes, what is refused. tests/third_party/ compares values with a peer."""
import pytest
import torch

from tests.tokenizer.parameters import count_parameters
from vqim.contracts.context import Context
from vqim.nn.module import apply, spec
from vqim.runtime.torch import TorchKernels
from vqim.state.init import full_index
from vqim.tokenizer.dvae import DVAEDecoder, DVAEEncoder
from vqim.tokenizer.losses import LOG_SCALE_FLOOR
from vqim.tokenizer.model import Codes

TINY_ENCODER = {"hidden": 8, "num_blocks": 1, "vocabulary": 10}
TINY_DECODER = {"hidden": 8, "num_blocks": 1, "width": 6}


def conv(num_inputs, num_outputs, size):
    return num_inputs * num_outputs * size**2 + num_outputs


def block(num_inputs, num_outputs, sizes):
    quarter = num_outputs // 4
    widths = [num_inputs, quarter, quarter, quarter, num_outputs]
    branch = sum(conv(before, after, size) for before, after, size in zip(widths, widths[1:], sizes, strict=False))
    return branch + (conv(num_inputs, num_outputs, 1) if num_inputs != num_outputs else 0)


def test_the_published_networks_have_this_many_parameters():
    widths = [256, 512, 1024, 2048]
    encoder = conv(3, 256, 7) + conv(2048, 8192, 1) + sum(
        block(before, after, (3, 3, 3, 1)) + block(after, after, (3, 3, 3, 1))
        for before, after in zip([256, 256, 512, 1024], widths, strict=True))
    assert count_parameters(DVAEEncoder(256, 2, 8192)) == encoder == 53_786_240
    decoder = conv(256, 6, 1) + sum(
        block(before, after, (1, 3, 3, 3)) + block(after, after, (1, 3, 3, 3))
        for before, after in zip([128, 2048, 1024, 512], reversed(widths), strict=True))
    assert count_parameters(DVAEDecoder(256, 2, 128)) == decoder == 42_781_062


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_become_logits_an_eighth_of_their_size_and_vectors_images(draw_params, dtype):
    encoder, decoder, context = DVAEEncoder(**TINY_ENCODER), DVAEDecoder(**TINY_DECODER), Context(TorchKernels(), dtype)
    assert encoder.latent_size(256) == (32, 32)
    logits = apply(encoder.forward, draw_params(encoder), torch.rand(2, 3, 16, 24), context)
    assert logits.shape == (2, 2, 3, 10) and logits.dtype == dtype
    codes = Codes(torch.full((2, 2, 3, 2), torch.nan), torch.randn(2, 2, 3, 6))  # vectors are ignored
    reconstruction = apply(decoder.forward, draw_params(decoder), codes, context)
    for array in (reconstruction.mean_BCHW, reconstruction.location_BCHW, reconstruction.log_scale_BCHW):
        assert array.shape == (2, 3, 16, 24) and array.dtype == torch.float32


def test_a_decoder_that_is_sure_of_everything_has_log_scales_at_the_floor(draw_params, context):
    decoder = DVAEDecoder(**TINY_DECODER)
    params = draw_params(decoder) | {"head/bias_O": torch.tensor([0.0] * 3 + [-500.0] * 3)}
    latents_BhwD = torch.randn(1, 2, 2, 6)
    reconstruction = apply(decoder.forward, params, Codes(latents_BhwD, latents_BhwD), context)
    assert torch.equal(reconstruction.log_scale_BCHW, torch.full((1, 3, 16, 16), LOG_SCALE_FLOOR))


def test_kernels_keep_the_variance_of_their_inputs_at_first():
    for module in (DVAEEncoder(32, 1, 512), DVAEDecoder(32, 1, 64)):
        for name, leaf in spec(module).items():
            values = leaf.init(name, leaf.shape, 0, full_index(leaf.shape))
            if name.endswith("bias_O"):
                assert not values.any()
            elif leaf.size > 5000:
                assert values.std() == pytest.approx((leaf.size / leaf.shape[0]) ** -0.5, rel=0.05)


def test_an_image_that_cannot_be_halved_three_times_is_refused():
    with pytest.raises(ValueError, match="image_size must be a multiple of 8, got 20"):
        DVAEEncoder(**TINY_ENCODER).latent_size(20)


@pytest.mark.parametrize(("network", "arguments", "message"), [
    (DVAEEncoder, TINY_ENCODER | {"hidden": 6}, "hidden must be a multiple of 4, .*; got 6"),
    (DVAEEncoder, TINY_ENCODER | {"vocabulary": 0}, "vocabulary must be a whole number of at least 1, got 0"),
    (DVAEDecoder, TINY_DECODER | {"num_blocks": 0}, "num_blocks must be a whole number of at least 1, got 0"),
    (DVAEDecoder, TINY_DECODER | {"width": 0}, "width must be a whole number of at least 1, got 0"),
])
def test_sizes_that_do_not_fit_are_refused(network, arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**arguments)
