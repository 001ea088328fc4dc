"""ViT-VQGAN's encoder and decoder: Table 2's sizes, the order of pixels, the image's distribution."""
import pytest
import torch

from tests.tokenizer.parameters import count_parameters
from vqim.nn.module import apply
from vqim.tokenizer.losses import LOG_SCALE_FLOOR
from vqim.tokenizer.model import Codes
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder

# Table 2: (#Blocks, #Heads, Model Dim, Hidden Dim)
TABLE_2 = {"Small": (8, 8, 512, 2048), "Base": (12, 12, 768, 3072), "Large": (32, 16, 1280, 5120)}


def dense(num_inputs, num_outputs):
    return num_inputs * num_outputs + num_outputs


def count_tower(layers, width, hidden, num_tokens):
    """Positions, blocks of four attention matrices, two of the feed-forward and two norms, and a last norm."""
    block = 4 * dense(width, width) + dense(width, hidden) + dense(hidden, width) + 2 * 2 * width
    return num_tokens * width + layers * block + 2 * width


@pytest.mark.parametrize(("size", "total"), [("Small", 27_942_912), ("Base", 90_713_088), ("Large", 644_352_000)])
def test_encoders_of_table_2_have_this_many_parameters(size, total):
    layers, heads, width, hidden = TABLE_2[size]
    encoder = ViTEncoder(256, 8, width=width, num_layers=layers, num_heads=heads, hidden=hidden)
    expected = (dense(3 * 8 * 8, width) + count_tower(layers, width, hidden, 32 * 32)
                + dense(width, hidden) + dense(hidden, width))
    assert count_parameters(encoder) == expected == total


@pytest.mark.parametrize(("size", "total"), [("Small", 27_581_824), ("Base", 89_384_832), ("Large", 639_516_544)])
def test_decoders_of_table_2_have_this_many_parameters(size, total):
    layers, heads, width, hidden = TABLE_2[size]
    decoder = ViTDecoder(256, 8, width=width, num_layers=layers, num_heads=heads, hidden=hidden)
    location_and_scale = 2 * 3 * 8 * 8
    expected = (count_tower(layers, width, hidden, 32 * 32)
                + dense(width, hidden) + dense(hidden, location_and_scale))
    assert count_parameters(decoder) == expected == total


def make_encoder(**kwargs):
    return ViTEncoder(**{"image_size": 12, "patch_size": 4, "width": 8, "num_layers": 2, "num_heads": 2, "hidden": 8,
                         **kwargs})


def make_decoder(**kwargs):
    return ViTDecoder(**{"image_size": 12, "patch_size": 4, "width": 8, "num_layers": 2, "num_heads": 2, "hidden": 8,
                         **kwargs})


def of(latents_BhwD):
    """Codes with these latents; this decoder ignores their vectors."""
    return Codes(torch.full((*latents_BhwD.shape[:3], 2), torch.nan), latents_BhwD)


def without_blocks(params):
    """Blocks that add nothing to the residual stream, so that no patch sees another."""
    silent = ("attention/out/", "blocks/block/contract/")
    return {name: torch.zeros_like(array) if any(part in name for part in silent) else array
            for name, array in params.items()}


def test_a_latent_sees_the_pixels_of_its_patch(draw_params, context):
    encoder = make_encoder()
    params, images = without_blocks(draw_params(encoder)), torch.rand(1, 3, 12, 12)
    latents = apply(encoder.forward, params, images, context)
    assert latents.shape == (1, 3, 3, 8)
    for y, x in ((0, 0), (3, 4), (7, 8), (11, 0)):
        changed = images.clone()
        changed[0, 1, y, x] += 0.5
        moved = (apply(encoder.forward, params, changed, context) - latents).abs().amax(-1)[0] > 1e-5
        assert moved.nonzero().tolist() == [[y // 4, x // 4]]


@pytest.mark.parametrize(("row", "column", "channel"), [(0, 0, 0), (0, 0, 2), (0, 3, 1), (2, 1, 0), (3, 3, 2)])
def test_encoder_and_decoder_read_a_patch_row_by_row_with_colours_together(draw_params, context, row, column, channel):
    number = (row * 4 + column) * 3 + channel
    pixel = (0, channel, 4 + row, 8 + column)  # in patch (1, 2)

    encoder = make_encoder()
    params = without_blocks(draw_params(encoder))
    others = torch.arange(3 * 4 * 4) != number
    params["embed/kernel_IO"][others] = 0.0
    images = torch.rand(1, 3, 12, 12, requires_grad=True)
    apply(encoder.forward, params, images, context)[0, 1, 2].sum().backward()
    assert images.grad.nonzero().tolist() == [list(pixel)]

    decoder = make_decoder()
    params = without_blocks(draw_params(decoder))
    params["head/contract/kernel_IO"] = torch.zeros(8, 96)
    params["head/contract/bias_O"] = torch.arange(96.0)
    reconstruction = apply(decoder.forward, params, of(torch.randn(1, 3, 3, 8)), context)
    assert reconstruction.location_BCHW[pixel] == number
    assert reconstruction.log_scale_BCHW[pixel] == 48 + number


def test_a_decoder_that_is_sure_of_everything_has_log_scales_at_the_floor(draw_params, context):
    decoder = make_decoder()
    params = draw_params(decoder) | {"head/contract/bias_O": torch.tensor([0.0] * 48 + [-500.0] * 48)}
    reconstruction = apply(decoder.forward, params, of(torch.randn(1, 3, 3, 8)), context)
    assert torch.equal(reconstruction.log_scale_BCHW, torch.full((1, 3, 12, 12), LOG_SCALE_FLOOR))


def test_a_code_is_seen_in_the_pixels_of_its_patch(draw_params, context):
    decoder = make_decoder()
    params, latents = without_blocks(draw_params(decoder)), torch.randn(1, 3, 3, 8)
    changed = latents.clone()
    changed[0, 1, 2, 0] += 1
    before, after = (apply(decoder.forward, params, of(x), context).mean_BCHW for x in (latents, changed))
    moved = (after - before).abs().amax((0, 1)) > 1e-6
    assert moved[4:8, 8:12].all() and moved.sum() == 16


@pytest.mark.parametrize("make", [make_encoder, make_decoder])
def test_every_position_matters_to_every_other(draw_params, context, make):
    module = make()
    params = draw_params(module)
    x = torch.rand(1, 3, 12, 12) if make is make_encoder else of(torch.randn(1, 3, 3, 8))

    def run():
        out = apply(module.forward, params, x, context)
        return out if make is make_encoder else out.mean_BCHW

    before = run()
    params["tower/positions_hwD"] = params["tower/positions_hwD"].clone()
    params["tower/positions_hwD"][2, 0, 0] += 1  # in one feature: norms take away what is added to all of them
    assert (run() - before != 0).float().mean() > 0.95


def test_grey_is_the_middle_of_the_encoders_inputs(draw_params, context):
    # Images in [0, 1] enter as [-1, 1], so that of a grey one nothing but the bias is left.
    encoder, grey = make_encoder(), torch.full((1, 3, 12, 12), 0.5)
    params = draw_params(encoder)
    expected = apply(encoder.forward, params, grey, context)
    params["embed/kernel_IO"] = 5 * params["embed/kernel_IO"]
    torch.testing.assert_close(apply(encoder.forward, params, grey, context), expected, rtol=0, atol=0)


def test_the_image_is_the_locations_sigmoid_stretched(draw_params, context):
    decoder = make_decoder()
    reconstruction = apply(decoder.forward, draw_params(decoder), of(torch.randn(2, 3, 3, 8)), context)
    assert reconstruction.mean_BCHW.shape == (2, 3, 12, 12)
    sigmoid = 1 / (1 + (-reconstruction.location_BCHW.double()).exp())
    torch.testing.assert_close(reconstruction.mean_BCHW.double(), (sigmoid - 0.1) / 0.8, rtol=1e-5, atol=1e-6)


def test_a_head_of_two_layers_with_tanh_ends_the_encoder(draw_params, context):
    encoder, images = make_encoder(), torch.rand(1, 3, 12, 12)
    params = draw_params(encoder)
    before_head = {**params, "head/expand/kernel_IO": 1e-3 * torch.eye(8), "head/expand/bias_O": torch.zeros(8),
                   "head/contract/kernel_IO": 1e3 * torch.eye(8), "head/contract/bias_O": torch.zeros(8)}
    x = apply(encoder.forward, before_head, images, context)  # tanh(x / 1000) * 1000
    hidden = (x @ params["head/expand/kernel_IO"] + params["head/expand/bias_O"]).tanh()
    expected = hidden @ params["head/contract/kernel_IO"] + params["head/contract/bias_O"]
    torch.testing.assert_close(apply(encoder.forward, params, images, context), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [make_encoder, make_decoder])
@pytest.mark.parametrize(("arguments", "message"), [
    ({"image_size": 14}, "image_size must be a multiple of patch_size 4, got 14"),
    ({"patch_size": 0}, "patch_size must be a whole number of at least 1, got 0"),
    ({"num_layers": 0}, "num_layers must be a whole number of at least 1, got 0"),
    ({"width": 9}, "width must be a multiple of num_heads, got width 9 and num_heads 2"),
    ({"dropout_rate": -0.5}, "dropout_rate must be at least 0 and below 1, got -0.5"),
])
def test_sizes_that_do_not_fit_are_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_another_image_size_than_the_table_of_positions_is_refused():
    with pytest.raises(ValueError, match="image_size must be the encoder's own, 12, got 16"):
        make_encoder().latent_size(16)
