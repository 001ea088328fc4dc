"""VQGAN's encoder and decoder: published sizes, shapes, ranges. tests/third_party/ compares values with a peer."""
import math

import pytest
import torch

from tests.tokenizer.parameters import count_parameters
from vqim.contracts.context import Context
from vqim.nn.convolution import GroupNorm
from vqim.nn.module import apply, parameter, spec
from vqim.runtime.torch import TorchKernels
from vqim.state.init import Constant
from vqim.tokenizer.cnn import CNNDecoder, CNNEncoder
from vqim.tokenizer.losses import LOG_SCALE_FLOOR
from vqim.tokenizer.model import Codes, ImageTokenizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer

F16, F8 = (1, 1, 2, 2, 4), (1, 1, 2, 4)
TINY = {"channels": 32, "multipliers": (1, 2, 1), "num_blocks": 1, "width": 12}


def of(latents_BhwD):
    """Codes with these latents, for decoders whose normalisations ignore the codes' vectors."""
    return Codes(torch.full((*latents_BhwD.shape[:3], 2), torch.nan, dtype=latents_BhwD.dtype), latents_BhwD)


@pytest.mark.parametrize(("channels", "multipliers", "encoder", "decoder"), [
    (128, F16, 29_298_176, 42_449_795), (128, F8, 26_345_728, 38_316_163),
    (256, F16, 114_760_448, 167_343_875), (256, F8, 102_957_312, 150_819_075),
])
def test_networks_of_the_papers_have_this_many_parameters(channels, multipliers, encoder, decoder):
    def conv(num_inputs, num_outputs, size=3):
        return num_inputs * num_outputs * size**2 + num_outputs

    def block(num_inputs, num_outputs):
        shortcut = 0 if num_inputs == num_outputs else conv(num_inputs, num_outputs, 1)
        return (2 * num_inputs + conv(num_inputs, num_outputs) + 2 * num_outputs + conv(num_outputs, num_outputs)
                + shortcut)

    def attention(width):
        return 2 * width + 4 * conv(width, width, 1)

    widths = [channels * multiplier for multiplier in multipliers]
    lowest = widths[-1]
    middle = 2 * block(lowest, lowest) + attention(lowest)
    down = sum(block(before, after) + block(after, after)
               for before, after in zip([channels, *widths], widths, strict=False))
    halvings = sum(conv(width, width) for width in widths[:-1])
    expected = (conv(3, channels) + down + 2 * attention(lowest) + halvings + middle
                + 2 * lowest + conv(lowest, 256))
    assert count_parameters(CNNEncoder(channels, multipliers, 2, 256)) == expected == encoder

    up = sum(block(before, after) + 2 * block(after, after)
             for before, after in zip([lowest, *widths[::-1]], widths[::-1], strict=False))
    doublings = sum(conv(width, width) for width in widths[1:])
    expected = (conv(256, lowest) + middle + up + 3 * attention(lowest) + doublings
                + 2 * widths[0] + conv(widths[0], 3))
    assert count_parameters(CNNDecoder(channels, multipliers, 2, 256)) == expected == decoder


def test_the_vqgan_of_16_x_16_codes_has_the_published_72_1_million_parameters():
    # With its codebook of 1024 x 256 and the 1x1 convolutions around it.
    tokenizer = ImageTokenizer(
        CNNEncoder(128, F16, 2, 256), VectorQuantizer(256, 256, 1024, code_dim=256, normalize=False),
        CNNDecoder(128, F16, 2, 256), image_size=256)
    assert count_parameters(tokenizer) == 72_141_699
    assert tokenizer.grid.num_positions == 16 * 16


@pytest.mark.parametrize(("multipliers", "size"), [(F16, 16), (F8, 32)])
def test_the_latents_of_256_pixels(multipliers, size):
    encoder = CNNEncoder(32, multipliers, 1, 4)
    assert encoder.latent_size(256) == (size, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_become_latents_and_images_again(draw_params, dtype):
    encoder, decoder, context = CNNEncoder(**TINY), CNNDecoder(**TINY), Context(TorchKernels(), dtype)
    latents = apply(encoder.forward, draw_params(encoder), torch.rand(2, 3, 16, 24), context)
    assert latents.shape == (2, 4, 6, 12) and latents.dtype == dtype
    reconstruction = apply(decoder.forward, draw_params(decoder), of(latents), context)
    assert reconstruction.mean_BCHW.shape == (2, 3, 16, 24) and reconstruction.mean_BCHW.dtype == torch.float32
    assert reconstruction.location_BCHW is None and reconstruction.log_scale_BCHW is None


def test_grey_is_the_middle_of_the_encoders_inputs(draw_params, context):
    # Images in [0, 1] enter as [-1, 1], so that of a grey one nothing but the bias is left.
    encoder, grey = CNNEncoder(**TINY), torch.full((1, 3, 8, 8), 0.5)
    params = draw_params(encoder)
    expected = apply(encoder.forward, params, grey, context)
    params["conv_in/kernel_OIHW"] = 5 * params["conv_in/kernel_OIHW"]
    torch.testing.assert_close(apply(encoder.forward, params, grey, context), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("output", "pixel"), [(-1.0, 0.0), (0.0, 0.5), (1.0, 1.0), (3.0, 2.0)])
def test_the_decoders_images_are_stretched_to_zero_and_one_and_not_clamped(draw_params, context, output, pixel):
    decoder = CNNDecoder(**TINY)
    params = draw_params(decoder)
    params["head/conv/kernel_OIHW"] = torch.zeros(3, 32, 3, 3)
    params["head/conv/bias_O"] = torch.full((3,), output)
    reconstruction = apply(decoder.forward, params, of(torch.randn(1, 2, 2, 12)), context)
    assert torch.equal(reconstruction.mean_BCHW, torch.full((1, 3, 8, 8), pixel))


def test_a_decoder_with_a_distribution_has_its_location_before_its_scale(draw_params, context):
    decoder = CNNDecoder(**TINY, logit_laplace=True)
    params = draw_params(decoder)
    params["head/conv/kernel_OIHW"] = torch.zeros(6, 32, 3, 3)
    params["head/conv/bias_O"] = torch.tensor([0.0, 1.0, -2.0, -3.0, -4.0, -5.0])
    reconstruction = apply(decoder.forward, params, of(torch.randn(1, 2, 2, 12)), context)
    assert reconstruction.location_BCHW[0, :, 3, 5].tolist() == [0.0, 1.0, -2.0]
    expected = [LOG_SCALE_FLOOR + math.log1p(math.exp(x - LOG_SCALE_FLOOR)) for x in (-3.0, -4.0, -5.0)]
    assert reconstruction.log_scale_BCHW[0, :, 3, 5].tolist() == pytest.approx(expected, rel=1e-6)
    # (sigmoid(location) - 0.1) / 0.8, worked out by hand.
    expected = torch.tensor([0.5, 0.788823, 0.024004])
    torch.testing.assert_close(reconstruction.mean_BCHW[0, :, 3, 5], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", [CNNEncoder, CNNDecoder])
def test_attention_is_at_the_lowest_resolution_and_in_the_middle(network):
    found = {name.split("/attention/")[0] for name in spec(network(**TINY)) if "/attention/" in name}
    lowest = 2 if network is CNNEncoder else 0
    assert found == {f"levels/{lowest}", "middle"}


@pytest.mark.parametrize("network", [CNNEncoder, CNNDecoder])
def test_without_attention_a_network_is_the_same_but_for_its_attention(network):
    names = set(spec(network(**TINY)))
    assert set(spec(network(**TINY, attention=None))) == {name for name in names if "/attention/" not in name}


@pytest.mark.parametrize("network", [CNNEncoder, CNNDecoder])
def test_without_attention_a_network_is_as_before_attention_does_something(draw_params, context, network):
    plain, attending = network(**TINY, attention=None), network(**TINY)
    x = torch.rand(1, 3, 8, 8) if network is CNNEncoder else of(torch.randn(1, 2, 2, 12))
    params = draw_params(attending)
    params |= {name: torch.zeros_like(array) for name, array in params.items() if "/attention/out/" in name}
    expected = apply(attending.forward, params, x, context)
    found = apply(plain.forward, {name: params[name] for name in spec(plain)}, x, context)
    if network is CNNDecoder:
        found, expected = found.mean_BCHW, expected.mean_BCHW
    torch.testing.assert_close(found, expected)


class ConditionedNorm(GroupNorm):
    """Adds the mean of its condition, with a weight of its own, and remembers what it was given."""

    def __init__(self, num_features):
        super().__init__(num_features)
        self.share = parameter((), Constant(0.0))
        self.seen = []

    def forward(self, x_BCHW, context, condition_BZhw=None):
        self.seen.append((tuple(x_BCHW.shape[2:]), condition_BZhw))
        x_BCHW = super().forward(x_BCHW, context)
        return x_BCHW if condition_BZhw is None else x_BCHW + self.share * condition_BZhw.mean()


def test_every_normalisation_of_the_decoder_sees_the_codes_vectors(draw_params, context):
    decoder = CNNDecoder(**TINY, norm=ConditionedNorm)
    vectors = torch.randn(2, 3, 4, 7)
    apply(decoder.forward, draw_params(decoder), Codes(vectors, torch.randn(2, 3, 4, 12)), context)
    norms = [module for module in decoder.modules() if isinstance(module, GroupNorm)]
    # Two of each residual block (two in the middle, two a level), one of each attention, one in the head.
    assert len(norms) == 2 * (2 + 3 * 2) + (1 + 2) + 1
    for norm in norms:
        (_, condition), = norm.seen
        assert torch.equal(condition, vectors.permute(0, 3, 1, 2))


def test_the_condition_keeps_its_size_where_the_image_grows(draw_params, context):
    decoder = CNNDecoder(**TINY, norm=ConditionedNorm)
    apply(decoder.forward, draw_params(decoder), Codes(torch.randn(1, 2, 3, 7), torch.randn(1, 2, 3, 12)), context)
    first, last = decoder.middle.block_1.norm_1, decoder.head.norm
    assert [norm.seen[0][0] for norm in (first, last)] == [(2, 3), (8, 12)]
    assert [norm.seen[0][1].shape[2:] for norm in (first, last)] == [(2, 3), (2, 3)]


def test_each_block_of_the_decoder_can_depend_on_the_codes_vectors(draw_params, context):
    decoder = CNNDecoder(**TINY, norm=ConditionedNorm)
    params, latents = draw_params(decoder), torch.randn(1, 2, 2, 12)
    params |= {name: torch.zeros(()) for name in params if name.endswith("share")}
    vectors = torch.rand(1, 2, 2, 7)
    before = apply(decoder.forward, params, Codes(vectors, latents), context).mean_BCHW
    for name in (name for name in params if name.endswith("share")):
        after = apply(decoder.forward, params | {name: torch.tensor(0.5)}, Codes(vectors, latents), context).mean_BCHW
        assert not torch.equal(after, before), name


def test_the_encoders_normalisations_are_of_the_factory_and_have_no_condition(draw_params, context):
    encoder = CNNEncoder(**TINY, norm=ConditionedNorm)
    apply(encoder.forward, draw_params(encoder), torch.rand(1, 3, 8, 8), context)
    norms = [module for module in encoder.modules() if isinstance(module, GroupNorm)]
    # Two of each residual block (one a level, two in the middle), one of each attention, one in the head.
    assert len(norms) == 2 * (3 + 2) + (1 + 1) + 1
    assert all(isinstance(norm, ConditionedNorm) and norm.seen[0][1] is None for norm in norms)


class RecordedKernels(TorchKernels):
    """Remembers the keys of the masks that it makes."""

    def __init__(self):
        self.keys = []

    def keep_mask(self, key, rate, shape, device):
        self.keys.append(key.item())
        return super().keep_mask(key, rate, shape, device)


@pytest.mark.parametrize(("network", "num_blocks", "x"), [
    (CNNEncoder, 3 + 2, torch.rand(1, 3, 8, 8)), (CNNDecoder, 3 * 2 + 2, of(torch.rand(1, 2, 2, 12)))])
def test_every_block_draws_its_own_dropout(draw_params, network, num_blocks, x):
    module, kernels = network(**TINY, dropout_rate=0.1), RecordedKernels()
    context = Context(kernels, key=torch.tensor(0, dtype=torch.int32))
    apply(module.forward, draw_params(module), x, context)
    assert len(kernels.keys) == num_blocks == len(set(kernels.keys))


def test_an_image_that_cannot_be_halved_often_enough_is_refused():
    with pytest.raises(ValueError, match="image_size must be a multiple of 4, to be halved at every level but"):
        CNNEncoder(**TINY).latent_size(18)


@pytest.mark.parametrize("network", [CNNEncoder, CNNDecoder])
@pytest.mark.parametrize(("arguments", "message"), [
    ({"channels": 0}, "channels must be a whole number of at least 1, got 0"),
    ({"channels": 48}, "channels must be a multiple of 32, the groups of each normalisation; got 48"),
    ({"multipliers": ()}, r"multipliers must be whole numbers of at least 1, one for each level; got \(\)"),
    ({"multipliers": (1, 0)}, r"multipliers must be whole numbers of at least 1, one for each level; got \(1, 0\)"),
    ({"num_blocks": 0}, "num_blocks must be a whole number of at least 1, got 0"),
    ({"dropout_rate": 1.0}, "dropout_rate must be at least 0 and below 1, got 1.0"),
])
def test_sizes_that_do_not_fit_are_refused(network, arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**{**TINY, **arguments})
