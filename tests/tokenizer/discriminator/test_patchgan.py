import numpy as np
import pytest
import torch
from torch import nn

from tests.tokenizer.parameters import count_parameters
from vqim.nn.module import apply, spec
from vqim.tokenizer.discriminator.patchgan import NormalAround, PatchGANDiscriminator, batch_norm


def compose(base_channels, num_halvings):
    """The same network of PyTorch's own modules, in training mode: VQGAN's."""
    def layer(num_inputs, num_outputs, stride, bias):
        return nn.Conv2d(num_inputs, num_outputs, kernel_size=4, stride=stride, padding=1, bias=bias)

    modules = [layer(3, base_channels, 2, bias=True), nn.LeakyReLU(0.2)]
    width = base_channels
    for n in range(1, num_halvings + 1):
        wider = base_channels * min(2**n, 8)
        modules += [layer(width, wider, 2 if n < num_halvings else 1, bias=False), nn.BatchNorm2d(wider)]
        modules += [nn.LeakyReLU(0.2)]
        width = wider
    return nn.Sequential(*modules, layer(width, 1, 1, bias=True))


def value_and_gradients(function, arrays, images):
    """Logits, gradients of a sum of their squares, and gradients of R1, in the order of `arrays`."""
    images = images.clone().requires_grad_()
    logits = function(images)
    first = torch.autograd.grad(logits.square().sum(), [images, *arrays], create_graph=True)
    slope, = torch.autograd.grad(logits.sum(), images, create_graph=True)
    second = torch.autograd.grad(slope.square().sum(), arrays, materialize_grads=True)
    return [logits, *first, *second]


@pytest.mark.parametrize("image_size, base_channels, num_halvings", [(32, 4, 3), (64, 2, 4), (16, 4, 1)])
def test_logits_gradients_and_r1_equal_pytorchs_own_modules(
    image_size, base_channels, num_halvings, draw_params, context,
):
    discriminator = PatchGANDiscriminator(image_size, base_channels, num_halvings)
    params = {n: a.requires_grad_() for n, a in draw_params(discriminator, torch.float64).items()}
    images = torch.rand(3, 3, image_size, image_size, dtype=torch.float64)
    got = value_and_gradients(
        lambda x: apply(discriminator.forward, params, x, context(torch.float64)), list(params.values()), images)
    reference = compose(base_channels, num_halvings).double()
    # both list their parameters from the image on, except that ours has those of the ends first
    ours = ["first_kernel_OIHW", "first_bias_O", *(n for n in params if n.startswith("layers/")),
            "last_kernel_OIHW", "last_bias_O"]
    theirs = dict(zip(ours, reference.parameters(), strict=True))
    with torch.no_grad():
        for name, array in theirs.items():
            array.copy_(params[name])
    expected = value_and_gradients(
        lambda x: reference(2 * x - 1)[:, 0], [theirs[name] for name in params], images)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max().clamp(min=1e-30)


def test_vqgans_size_has_2_8_million_parameters_and_30x30_logits(context, draw_params):
    discriminator = PatchGANDiscriminator(256)
    convolutions = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    assert count_parameters(discriminator) == convolutions + (64 + 1) + 2 * (128 + 256 + 512) == 2_765_633
    assert count_parameters(discriminator) == sum(array.numel() for array in compose(64, 3).parameters())
    with torch.device("meta"):
        params = {name: torch.empty(leaf.shape) for name, leaf in spec(discriminator).items()}
        assert apply(discriminator.forward, params, torch.empty(2, 3, 256, 256), context()).shape == (2, 30, 30)


def test_kernels_and_gains_start_with_a_spread_of_0_02(context):
    leaves = spec(PatchGANDiscriminator(64))
    values = {name: leaf.init(name, leaf.shape, 0, tuple(slice(0, n) for n in leaf.shape))
              for name, leaf in leaves.items()}
    for name, array in values.items():
        if "bias" in name:
            assert not array.any(), name
        else:
            assert abs(array.std() - 0.02) < 0.003 and abs(array.mean() - ("gain" in name)) < 0.003, name


def test_a_gain_filled_in_parts_is_the_gain_filled_at_once():
    init = NormalAround(1.0, 0.02)
    parts = [init("gain", (10,), 7, (slice(first, first + 5),)) for first in (0, 5)]
    whole = init("gain", (10,), 7, (slice(0, 10),))
    assert whole.dtype == np.float32 and np.array_equal(np.concatenate(parts), whole)


def test_under_bfloat16_the_statistics_are_float32():
    x_BCHW = (100 + torch.randn(4, 3, 8, 8)).bfloat16()  # bfloat16 would round the mean to a multiple of 1/2
    gain_C, bias_C = torch.rand(3), torch.randn(3)
    expected = nn.functional.batch_norm(
        x_BCHW.double(), None, None, gain_C.double(), bias_C.double(), training=True)
    got = batch_norm(x_BCHW, gain_C, bias_C)
    assert got.dtype == torch.bfloat16
    assert (got.double() - expected).abs().max() <= 2**-8 * expected.abs().max()


def test_under_bfloat16_logits_are_float32_and_near_those_of_float32(context, draw_params):
    discriminator = PatchGANDiscriminator(32, 4)
    params, images = draw_params(discriminator), torch.rand(4, 3, 32, 32)
    expected = apply(discriminator.forward, params, images, context())
    got = apply(discriminator.forward, params, images, context(torch.bfloat16))
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() <= 0.03 * expected.abs().max()


@pytest.mark.parametrize("arguments, message", [
    ({"image_size": 36}, "image_size must be a multiple of 8, by which num_halvings divides it, and at least 24; got"),
    ({"image_size": 16}, "image_size must be a multiple of 8, by which num_halvings divides it, and at least 24; got"),
    ({"image_size": 64, "num_halvings": 0}, "num_halvings must be a whole number of at least 1"),
])
def test_arguments_that_make_no_network_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatchGANDiscriminator(**arguments)


def test_images_of_another_size_are_refused(context, draw_params):
    discriminator = PatchGANDiscriminator(32, 4)
    with pytest.raises(ValueError, match="images must be 32x32"):
        apply(discriminator.forward, draw_params(discriminator), torch.rand(2, 3, 64, 64), context())
