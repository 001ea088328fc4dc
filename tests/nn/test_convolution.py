"""Convolutions and normalisation against slow sums, and the blocks that VQGAN is made of."""
import numpy as np
import pytest
import torch
from einops import rearrange

from vqim.contracts.context import Context
from vqim.nn.convolution import (
    AttentionBlock,
    Conv2d,
    Downsample,
    GroupNorm,
    ResidualBlock,
    SpatialNorm,
    Upsample,
    repeat_pixels,
)
from vqim.nn.module import apply, spec
from vqim.runtime.torch import TorchKernels
from vqim.state.init import Normal, full_index


def slow_convolution(x_BCHW, kernel_OIHW, bias_O, stride, padding):
    """Every output by the definition: a sum over a window of the image with zeros around it."""
    left, right, top, bottom = padding
    x = np.pad(x_BCHW.double().numpy(), ((0, 0), (0, 0), (top, bottom), (left, right)))
    kernel, size = kernel_OIHW.double().numpy(), kernel_OIHW.shape[-1]
    height, width = ((length - size) // stride + 1 for length in x.shape[2:])
    out = np.empty((x.shape[0], kernel.shape[0], height, width))
    for row, column in np.ndindex(height, width):
        window = x[:, :, row * stride:row * stride + size, column * stride:column * stride + size]
        out[:, :, row, column] = np.einsum("bihw,oihw->bo", window, kernel)
    return torch.from_numpy(out + bias_O.double().numpy()[:, None, None]).float()


@pytest.mark.parametrize(("kernel_size", "stride", "padding", "effective"), [
    (3, 1, None, (1, 1, 1, 1)), (1, 1, None, (0, 0, 0, 0)), (7, 1, None, (3, 3, 3, 3)),
    (3, 2, (0, 1, 0, 1), (0, 1, 0, 1)), (4, 2, (1, 2, 0, 1), (1, 2, 0, 1)), (3, 1, (1, 1, 0, 0), (1, 1, 0, 0)),
])
def test_a_convolution_is_the_sum_over_its_windows(draw_params, context, kernel_size, stride, padding, effective):
    conv = Conv2d(3, 5, kernel_size, stride, padding)
    params, x = draw_params(conv), torch.randn(2, 3, 8, 7)
    expected = slow_convolution(x, params["kernel_OIHW"], params["bias_O"], stride, effective)
    torch.testing.assert_close(apply(conv.forward, params, x, context), expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_starts_as_pytorchs_own_does():
    leaves = spec(Conv2d(48, 64, kernel_size=3))
    torch.manual_seed(0)
    peer = torch.nn.Conv2d(48, 64, 3)
    for name, theirs in (("kernel_OIHW", peer.weight), ("bias_O", peer.bias)):
        leaf = leaves[name]
        ours = leaf.init(name, leaf.shape, 0, full_index(leaf.shape))
        assert ours.shape == theirs.shape
        assert ours.std() == pytest.approx(theirs.std().item(), rel=0.15)
        assert abs(ours).max() == pytest.approx(theirs.abs().max().item(), rel=0.05)


def test_a_given_initial_value_is_the_kernels_and_biases_are_zero_with_it():
    leaves = spec(Conv2d(4, 4, 3, init=Normal(2.0)))
    assert leaves["kernel_OIHW"].init == Normal(2.0)
    assert not leaves["bias_O"].init("bias_O", (4,), 0, (slice(0, 4),)).any()


def test_groups_are_normalised_on_their_own(draw_params, context):
    norm = GroupNorm(6, num_groups=3, eps=1e-6)
    params, x = draw_params(norm), 5 + 3 * torch.randn(2, 6, 4, 5)
    groups = rearrange(x.double().numpy(), "b (g c) h w -> b g (c h w)", g=3)
    normalised = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-6)
    normalised = rearrange(normalised, "b g (c h w) -> b (g c) h w", h=4, w=5)
    gain, bias = (params[name].double().numpy()[:, None, None] for name in ("gain_C", "bias_C"))
    expected = torch.from_numpy(normalised * gain + bias).float()
    torch.testing.assert_close(apply(norm.forward, params, x, context), expected, rtol=1e-4, atol=1e-5)


def test_statistics_are_float32_where_activations_are_not(draw_params):
    norm = GroupNorm(4, num_groups=2)
    params, context = draw_params(norm), Context(TorchKernels(), torch.bfloat16)
    x = (300 + torch.randn(2, 4, 8, 8)).bfloat16()  # bfloat16 has steps of 2 at 300: its own mean would be lost
    exact = apply(norm.forward, params, x.float(), Context(TorchKernels()))
    out = apply(norm.forward, params, x, context)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=2**-8, atol=1e-6)


def test_a_number_of_channels_that_does_not_make_groups_is_refused():
    with pytest.raises(ValueError, match="channels must be a multiple of 32, the groups of each normalisation; got 48"):
        GroupNorm(48)


def test_modulation_is_equation_4_of_movq_point_by_point(draw_params, context):
    # In float64, with the gain and the bias that VQGAN's group normalisation has beside.
    norm = SpatialNorm(64, condition_width=5)
    params, x, condition = draw_params(norm), 2 + 3 * torch.randn(2, 64, 4, 8), torch.randn(2, 5, 2, 4)
    found = apply(norm.forward, params, x, context, condition)
    p = {name: array.double().numpy() for name, array in params.items()}
    groups = x.double().numpy().reshape(2, 32, 2, 4, 8)
    mean, variance = groups.mean((2, 3, 4), keepdims=True), groups.var((2, 3, 4), keepdims=True)
    normal = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(2, 64, 4, 8)
    for b, c, row, column in np.ndindex(2, 64, 4, 8):
        z = condition[b, :, row // 2, column // 2].double().numpy()
        scale = p["scale/kernel_OIHW"][c, :, 0, 0] @ z + p["scale/bias_O"][c]
        shift = p["shift/kernel_OIHW"][c, :, 0, 0] @ z + p["shift/bias_O"][c]
        expected = scale * (p["norm/gain_C"][c] * normal[b, c, row, column] + p["norm/bias_C"][c]) + shift
        assert found[b, c, row, column].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_modulation_starts_around_the_plain_normalisation():
    norm = SpatialNorm(32, condition_width=4)
    arrays = {name: torch.from_numpy(leaf.init(name, leaf.shape, 0, full_index(leaf.shape)))
              for name, leaf in spec(norm).items()}
    x = torch.randn(2, 32, 4, 4)
    found = apply(norm.forward, arrays, x, Context(TorchKernels()), torch.zeros(2, 4, 2, 2))
    shift = arrays["shift/bias_O"][:, None, None]
    torch.testing.assert_close(found - shift, torch.nn.functional.group_norm(x, 32, eps=1e-6), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("condition", "message"), [
    (None, "condition_BZhw must be the codes' vectors, got None: encoders have no condition"),
    (torch.zeros(1, 4, 3, 4), "must have a size that divides the image's 4x4 by one number, got 3x4"),
    (torch.zeros(1, 4, 2, 4), "must have a size that divides the image's 4x4 by one number, got 2x4")])
def test_a_condition_that_does_not_fit_is_refused(draw_params, context, condition, message):
    norm = SpatialNorm(32, condition_width=4)
    with pytest.raises(ValueError, match=message):
        apply(norm.forward, draw_params(norm), torch.zeros(1, 32, 4, 4), context, condition)


def test_pixels_are_repeated_in_place():
    x = torch.arange(4.0).view(1, 1, 2, 2)
    assert repeat_pixels(x)[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


@pytest.mark.parametrize(("block", "shape"), [
    (ResidualBlock(32, 64), (2, 64, 6, 6)), (ResidualBlock(32, 32), (2, 32, 6, 6)), (AttentionBlock(32), (2, 32, 6, 6)),
    (Downsample(32, 40), (2, 40, 3, 3)), (Upsample(32, 40), (2, 40, 12, 12)),
])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_have_these_shapes_in_the_contexts_dtype(draw_params, block, shape, dtype):
    x = torch.randn(2, 32, 6, 6, dtype=dtype)
    out = apply(block.forward, draw_params(block), x, Context(TorchKernels(), dtype))
    assert out.shape == shape and out.dtype == dtype


def test_halving_looks_over_the_right_and_the_lower_edge(draw_params, context):
    block, x = Downsample(1, 1), torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, 0] = x[0, 0, 3, 3] = 1.0
    params = draw_params(block)
    kernel, bias = params["conv/kernel_OIHW"][0, 0], params["conv/bias_O"]
    out = apply(block.forward, params, x, context)[0, 0] - bias
    # The first pixel meets the window's first element; the last one the middle, with zeros right of it and below.
    torch.testing.assert_close(out, torch.tensor([[kernel[0, 0], 0.0], [0.0, kernel[1, 1]]]))


def test_attention_without_queries_adds_the_same_to_every_position(draw_params, context):
    block, x = AttentionBlock(32), torch.randn(1, 32, 4, 4)
    params = draw_params(block)
    # All positions have the same weight then, and what is attended is their mean.
    params |= {"attention/query/kernel_IO": torch.zeros(32, 32), "attention/query/bias_O": torch.zeros(32)}
    added = apply(block.forward, params, x, context) - x
    assert (added - added.mean((2, 3), keepdim=True)).abs().max() < 1e-5 < added.abs().max()


def test_every_position_attends_to_every_other(draw_params, context):
    block, x = AttentionBlock(32), torch.randn(1, 32, 4, 4)
    params, changed = draw_params(block), x.clone()
    changed[0, :, 1, 2] += torch.randn(32)
    moved = (apply(block.forward, params, changed, context) - changed) - (apply(block.forward, params, x, context) - x)
    assert (moved.abs().amax(1) > 1e-4).all()


def test_dropout_is_in_residual_blocks_and_off_in_evaluation(draw_params, context, training_context):
    block, x = ResidualBlock(32, 32, dropout_rate=0.5), torch.randn(1, 32, 4, 4)
    params = draw_params(block)
    plain = apply(ResidualBlock(32, 32).forward, params, x, training_context(0))
    assert torch.equal(apply(block.forward, params, x, context), plain)
    first, again, other = (apply(block.forward, params, x, training_context(key)) for key in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other) and not torch.equal(first, plain)
