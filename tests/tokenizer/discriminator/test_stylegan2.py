import pytest
import torch

from tests.tokenizer.discriminator import direct
from tests.tokenizer.discriminator.conftest import fan_in
from tests.tokenizer.parameters import count_parameters
from vqim.nn.module import apply, spec
from vqim.optim.layout import lay_out
from vqim.state.init import Constant, Normal
from vqim.tokenizer.discriminator import stylegan2
from vqim.tokenizer.discriminator.stylegan2 import StyleGAN2Discriminator

FEW_CHANNELS = 8
KINDS = {  # channels of the residual blocks, and how they compute
    "few channels": {"channel_base": 64},  # 4, 8: over blocks of pixels
    "few, then many": {"channel_base": 128},  # 8; 16, as they are
    "many channels": {"channel_base": 256},  # 16, 32
    "two strips": {"channel_base": 64, "num_strips": 2},  # of 8 and 4 rows
    "four strips, then none": {"channel_base": 64, "num_strips": 4},  # of 4 rows; of 2 there are none
}


def draw_images(num_images, discriminator):
    return torch.rand(num_images, 3, discriminator.image_size, discriminator.image_size)


def value_and_gradients(function, params, images):
    """A function's logits, and the gradients of a sum of them."""
    leaves = {name: array.clone().requires_grad_() for name, array in params.items()}
    images = images.clone().requires_grad_()
    logits = function(leaves, images)
    weights = torch.arange(1, 1 + len(logits), dtype=logits.dtype)
    grads = torch.autograd.grad((weights * logits).sum(), [images, *leaves.values()])
    return [logits.detach(), *grads]


def r1_and_gradients(function, params, images):
    """The mean squared norm of the logits' gradient by the images, and its own gradients by the parameters."""
    leaves = {name: array.clone().requires_grad_() for name, array in params.items()}
    images = images.clone().requires_grad_()
    slope, = torch.autograd.grad(function(leaves, images).sum(), images, create_graph=True)
    penalty = slope.square().sum((1, 2, 3)).mean()
    grads = torch.autograd.grad(penalty, list(leaves.values()), materialize_grads=True)
    return [penalty.detach(), *grads]


def assert_close(got, expected, tolerance=1e-10):
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-30)


@pytest.fixture(params=KINDS)
def discriminator(request, monkeypatch):
    monkeypatch.setattr(stylegan2, "_FEW_CHANNELS", FEW_CHANNELS)  # 256 and more would take minutes in float64
    return StyleGAN2Discriminator(16, **KINDS[request.param])


@pytest.fixture
def double(context):
    """`double(discriminator)`: the discriminator as a function of parameters and images, in float64."""
    def make(discriminator):
        return lambda params, images: apply(discriminator.forward, params, images, context(torch.float64))
    return make


def test_logits_and_gradients_equal_the_direct_form_in_float64(discriminator, double, draw_params):
    params, images = draw_params(discriminator, torch.float64), draw_images(8, discriminator).double()
    got = value_and_gradients(double(discriminator), params, images)
    assert_close(got, value_and_gradients(direct.logits, params, images))


def test_gradients_of_r1_equal_the_direct_form_in_float64(discriminator, double, draw_params):
    params, images = draw_params(discriminator, torch.float64), draw_images(4, discriminator).double()
    got = r1_and_gradients(double(discriminator), params, images)
    assert_close(got, r1_and_gradients(direct.logits, params, images))


def test_the_gradient_of_r1_equals_finite_differences_in_float64(double, draw_params):
    discriminator = StyleGAN2Discriminator(8, channel_base=32)
    params, images = draw_params(discriminator, torch.float64), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    _, *grads = r1_and_gradients(double(discriminator), params, images)
    directions = {name: torch.randn_like(array) for name, array in params.items()}
    slope = sum((direction * grad).sum() for direction, grad in zip(directions.values(), grads, strict=True))
    above, below = (
        r1_and_gradients(double(discriminator), {n: a + step * directions[n] for n, a in params.items()}, images)[0]
        for step in (1e-6, -1e-6))
    assert abs((above - below) / 2e-6 - slope) <= 1e-6 * abs(slope)


@pytest.mark.parametrize("num_strips", [1, 2])
def test_images_at_the_border_are_seen_as_in_the_direct_form(num_strips, double, draw_params):
    discriminator = StyleGAN2Discriminator(8, channel_base=64, num_strips=num_strips)
    params, images = draw_params(discriminator, torch.float64), torch.zeros(4, 3, 8, 8, dtype=torch.float64)
    images[0, :, 0], images[1, :, -1], images[2, :, :, 0], images[3, :, :, -1] = 1, 1, 1, 1
    assert_close([double(discriminator)(params, images)], [direct.logits(params, images)])


def test_the_parameters_of_configuration_f_at_1024_are_as_many_as_in_the_authors_log():
    # "Total 29012513": the table that stylegan2's own program prints for D when it trains on FFHQ.
    assert count_parameters(StyleGAN2Discriminator(1024)) == 29_012_513


@pytest.mark.parametrize("image_size, channel_base, channels", [
    (256, 32768, [128, 256, 512, 512, 512, 512, 512]),
    (256, 16384, [64, 128, 256, 512, 512, 512, 512]),
    (32, 32768, [512, 512, 512, 512]),
])
def test_the_number_of_parameters_follows_from_the_channels(image_size, channel_base, channels):
    expected = 3 * channels[0] + channels[0]
    for i, o in zip(channels, channels[1:], strict=False):
        expected += (9 * i * i + i) + (9 * i * o + o) + i * o
    expected += (9 * 513 * 512 + 512) + (8192 * 512 + 512) + (512 + 1)
    assert count_parameters(StyleGAN2Discriminator(image_size, channel_base)) == expected


def test_kernels_start_from_the_standard_normal_and_biases_from_zero():
    for name, leaf in spec(StyleGAN2Discriminator(32, 256)).items():
        assert leaf.init == (Constant(0.0) if "bias" in name else Normal(fan_in(leaf) ** -0.5)), name


def test_an_image_changes_the_logits_of_its_group_and_no_others(context, draw_params):
    discriminator = StyleGAN2Discriminator(8, 32)
    params, images = draw_params(discriminator), torch.rand(8, 3, 8, 8)
    other = images.clone()
    other[5] = 1 - other[5]
    before, after = (apply(discriminator.forward, params, x, context()) for x in (images, other))
    assert torch.equal(before[:4], after[:4]) and (before[4:] != after[4:]).all()


def test_a_batch_that_is_smaller_than_a_group_is_one(context, draw_params):
    discriminator = StyleGAN2Discriminator(8, 32)
    params, images = draw_params(discriminator, torch.float64), torch.rand(3, 3, 8, 8, dtype=torch.float64)
    got = apply(discriminator.forward, params, images, context(torch.float64))
    assert_close([got], [direct.logits(params, images, group_size=3)])


def test_bfloat16_gives_float32_logits_near_those_of_float32(discriminator, context, draw_params):
    params, images = draw_params(discriminator), draw_images(8, discriminator)
    expected = apply(discriminator.forward, params, images, context())
    got = apply(discriminator.forward, params, images, context(torch.bfloat16))
    assert got.dtype == torch.float32 and got.shape == (8,)
    assert (got - expected).abs().max() <= 0.05  # of activations of about 1, in steps of 1/256


def test_an_int8_moment_has_a_scale_for_each_output_channel():
    params = spec(StyleGAN2Discriminator(32, 4096))
    layouts = lay_out(params, min_factored_size=32, factor_rules={})
    assert layouts["blocks/0/kernel_2_OIHW"].shared == (1, 2, 3)
    assert layouts["blocks/0/kernel_2_OIHW"].factored == (0, 1)
    assert layouts["hidden_kernel_IO"].shared == (0,)


@pytest.mark.parametrize("arguments, message", [
    ({"image_size": 48}, "image_size must be a power of two and at least 8, got 48"),
    ({"image_size": 4}, "image_size must be a power of two and at least 8, got 4"),
    ({"image_size": 64, "channel_base": 32}, "channel_base must be at least image_size 64"),
    ({"image_size": 64, "group_size": 0}, "group_size must be a whole number of at least 1"),
    ({"image_size": 64, "num_strips": 3}, "num_strips must be a power of two and at most image_size / 4 = 16, got 3"),
    ({"image_size": 64, "num_strips": 32}, "num_strips must be a power of two and at most image_size / 4 = 16, got 32"),
])
def test_arguments_that_make_no_network_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StyleGAN2Discriminator(**arguments)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 8, 12])
def test_batches_of_whole_groups_or_of_one_smaller_group_will_do(batch_size):
    StyleGAN2Discriminator(16, 32).check_batch(batch_size)


@pytest.mark.parametrize("batch_size", [5, 6, 10])
def test_batches_that_cannot_be_cut_into_groups_are_refused_before_training(batch_size):
    message = f"batch_size, of a micro-batch, must be a multiple of .* 4 or smaller than it, got {batch_size}"
    with pytest.raises(ValueError, match=message):
        StyleGAN2Discriminator(16, 32).check_batch(batch_size)


@pytest.mark.parametrize("shape, message", [
    ((4, 3, 16, 8), r"images must be 16x16, the discriminator's image_size; got \(4, 3, 16, 8\)"),
    ((6, 3, 16, 16), "the batch size must be a multiple of group_size 4, or smaller than it; got 6"),
])
def test_images_that_do_not_fit_are_refused(shape, message, context, draw_params):
    discriminator = StyleGAN2Discriminator(16, 32)
    with pytest.raises(ValueError, match=message):
        apply(discriminator.forward, draw_params(discriminator), torch.rand(shape), context())
