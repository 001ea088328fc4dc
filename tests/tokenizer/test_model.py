"""The tokenizer as a whole: tokens in raster order, there and back, what decides them, parts that have to fit."""
import numpy as np
import pytest
import torch

from vqim.contracts.context import Context
from vqim.contracts.grid import Level, TokenGrid
from vqim.nn.module import apply, arrays_spec, statistic, statistics_spec
from vqim.optim.schedules import Constant
from vqim.runtime.torch import TorchKernels
from vqim.state import init
from vqim.tokenizer.cnn import CNNDecoder
from vqim.tokenizer.dvae import DVAEDecoder
from vqim.tokenizer.model import Codes, ImageTokenizer, float_to_images, images_to_float
from vqim.tokenizer.quantizer.gumbel import GumbelQuantizer
from vqim.tokenizer.quantizer.hierarchical import HierarchicalQuantizer
from vqim.tokenizer.quantizer.multichannel import MultichannelQuantizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder


def test_the_grid_is_what_the_parts_make(make_tokenizer):
    assert make_tokenizer(vocabulary=32).grid == TokenGrid((Level(4, 4, 1, 32),))


def test_tokens_are_the_codes_in_raster_order(make_tokenizer, draw_params, context):
    tokenizer, images = make_tokenizer(), torch.rand(3, 3, 16, 16)
    params = draw_params(tokenizer)
    indices = apply(tokenizer.encode, params, images, context).indices[0]
    tokens = apply(tokenizer.tokens, params, images, context)
    assert tokens.shape == (3, 16, 1) and indices.unique().numel() > 4
    for row, column in np.ndindex(4, 4):
        assert torch.equal(tokens[:, 4 * row + column], indices[:, row, column])


@pytest.mark.parametrize("normalize", [True, False])
def test_images_of_tokens_are_the_reconstructions_clamped(make_tokenizer, draw_params, context, normalize):
    tokenizer, images = make_tokenizer(normalize=normalize), torch.rand(3, 3, 16, 16)
    params = draw_params(tokenizer)
    params["decoder/head/contract/bias_O"] = 4 * params["decoder/head/contract/bias_O"]  # so that some is out of range
    _, reconstruction = apply(tokenizer.forward, params, images, context)
    mean = reconstruction.mean_BCHW
    assert mean.min() < 0 and mean.max() > 1
    tokens = apply(tokenizer.tokens, params, images, context)
    decoded = apply(tokenizer.images, params, tokens, context)
    torch.testing.assert_close(decoded, mean.clamp(0, 1), rtol=1e-4, atol=1e-5)


class RecordedKernels(TorchKernels):
    """Remembers the keys of the masks that it makes."""

    def __init__(self):
        self.keys = []

    def keep_mask(self, key, rate, shape, device):
        self.keys.append(key.item())
        return super().keep_mask(key, rate, shape, device)


def test_encoder_and_decoder_draw_different_dropout(make_tokenizer, draw_params):
    tokenizer, kernels = make_tokenizer(dropout_rate=0.1), RecordedKernels()
    key = torch.tensor(0, dtype=torch.int32)
    apply(tokenizer.forward, draw_params(tokenizer), torch.rand(1, 3, 16, 16), Context(kernels, key=key))
    assert len(kernels.keys) == 2 * 2 * 4
    assert len(set(kernels.keys)) == len(kernels.keys)


def test_bytes_become_floats_with_channels_first():
    images = torch.arange(256, dtype=torch.uint8)[:, None, None, None].repeat(1, 2, 3, 3)
    images[..., 1] = 0
    floats = images_to_float(images)
    assert floats.shape == (256, 3, 2, 3) and floats.dtype == torch.float32
    torch.testing.assert_close(floats[:, 0, 0, 0], torch.arange(256) / 255)
    assert not floats[:, 1].any()


def test_floats_become_the_nearest_bytes_with_channels_last():
    floats = torch.arange(256).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1) / 255
    floats[:, 1] = (floats[:, 1] - 0.4 / 255).clamp(0)
    images = float_to_images(floats)
    assert images.shape == (1, 16, 16, 3) and images.dtype == torch.uint8
    assert torch.equal(images, torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3))


def vector(width_in, width_out, vocabulary=16):
    return VectorQuantizer(width_in, width_out, vocabulary, code_dim=4)


def hierarchy(width_in, top, width_out, bottom=vector):
    return HierarchicalQuantizer(width_in, top, bottom(width_in + top.width_out, width_out), num_blocks=1)


def gumbel(width_in, width_out):
    return GumbelQuantizer(width_in, width_out, 16, Constant(1.0))


# For each, what else of the quantizer than its own name says that it widens codes for the decoder.
QUANTIZERS = {
    "vector": (vector(32, 40), ["project_out/"]),
    "with restarts": (VectorQuantizer(32, 40, 16, 4, restart_below=0.1), ["project_out/", "use_V"]),
    "several codes, with restarts": (MultichannelQuantizer(32, 40, 16, 8, 2, restart_below=0.1),
                                     ["project_out/", "use_V"]),
    "hierarchy with restarts": (
        hierarchy(32, VectorQuantizer(32, 32, 16, 4, restart_below=0.1), 8),
        ["widen/", "bottom/project_out/", "top/use_V"]),
    "not factorised": (VectorQuantizer(32, 32, 16, code_dim=None), []),
    "Gumbel": (gumbel(32, 40), ["codebook_VD"]),
    "hierarchy": (hierarchy(32, vector(32, 32), 8), ["widen/", "bottom/project_out/"]),
    "hierarchy of Gumbels": (hierarchy(32, gumbel(32, 32), 8, gumbel), ["widen/", "bottom/codebook_VD"]),
    "three levels": (
        hierarchy(32, hierarchy(32, vector(32, 32), 32), 8), ["widen/", "bottom/project_out/"]),
}


def with_quantizer(quantizer):
    """A tokenizer of 16x16 images to 4x4 latents."""
    return ImageTokenizer(ViTEncoder(16, 4, 32, 1, 4, 32), quantizer,
                          ViTDecoder(16, 4, quantizer.width_out, 1, 2, 32), image_size=16)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_all_arrays_decide_tokens_but_the_decoders_and_those_that_widen_codes(name):
    quantizer, widening = QUANTIZERS[name]
    tokenizer = with_quantizer(quantizer)
    others = ("decoder/", *(f"quantizer/{prefix}" for prefix in widening))
    assert tokenizer.deciding_arrays() == sorted(
        array for array in arrays_spec(tokenizer) if not array.startswith(others))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_tokens_change_with_no_other_arrays_than_the_deciding_ones(draw_params, context, name):
    tokenizer, images = with_quantizer(QUANTIZERS[name][0]), torch.rand(4, 3, 16, 16)
    statistics = {array: torch.ones(leaf.shape) for array, leaf in statistics_spec(tokenizer).items()}
    params, deciding = draw_params(tokenizer) | statistics, tokenizer.deciding_arrays()
    tokens = apply(tokenizer.tokens, params, images, context)
    others = {array: 3 * torch.randn_like(value) for array, value in params.items() if array not in deciding}
    assert others and torch.equal(apply(tokenizer.tokens, params | others, images, context), tokens)


@pytest.mark.parametrize(("name", "array"), [
    ("vector", "codebook_VZ"), ("vector", "project_in/kernel_IO"), ("Gumbel", "logits/kernel_IO"),
    ("hierarchy", "top/project_out/kernel_IO"), ("hierarchy", "condition/conv/kernel_OIHW"),
    ("hierarchy of Gumbels", "top/codebook_VD"), ("three levels", "top/widen/conv/kernel_OIHW"),
    ("three levels", "top/bottom/project_out/kernel_IO"),
])
def test_tokens_change_with_deciding_arrays_also_the_widening_of_a_top(draw_params, context, name, array):
    tokenizer, images = with_quantizer(QUANTIZERS[name][0]), torch.rand(4, 3, 16, 16)
    params = draw_params(tokenizer)
    changed = params | {f"quantizer/{array}": torch.randn_like(params[f"quantizer/{array}"])}
    assert f"quantizer/{array}" in tokenizer.deciding_arrays()
    assert not torch.equal(apply(tokenizer.tokens, changed, images, context),
                           apply(tokenizer.tokens, params, images, context))


def test_statistics_of_a_quantizer_decide_tokens():
    quantizer = vector(32, 40)
    quantizer.counts_V = statistic((16,), init.Constant(0.0), "vocabulary")
    assert "quantizer/counts_V" in with_quantizer(quantizer).deciding_arrays()


def make_parts(encoder_width=8, width_in=8, width_out=8, decoder_width=8):
    return (ViTEncoder(8, 4, encoder_width, 1, 2, 8), VectorQuantizer(width_in, width_out, 16, 4),
            ViTDecoder(8, 4, decoder_width, 1, 2, 8))


@pytest.mark.parametrize(("widths", "message"), [
    ({"encoder_width": 12}, "quantizer.width_in must be the encoder's width 12, got 8"),
    ({"width_out": 4}, "quantizer.width_out must be the decoder's width 8, got 4"),
])
def test_parts_of_different_widths_are_refused(widths, message):
    with pytest.raises(ValueError, match=message):
        ImageTokenizer(*make_parts(**widths), image_size=8)


def test_an_image_size_that_is_not_the_encoders_is_refused():
    with pytest.raises(ValueError, match="image_size must be the encoder's own, 8, got 16"):
        ImageTokenizer(*make_parts(), image_size=16)


@pytest.mark.parametrize(("decoder", "last_layer"), [
    (ViTDecoder(8, 4, width=6, num_layers=1, num_heads=2, hidden=8), "head/contract"),
    (CNNDecoder(32, (1, 1), 1, width=6, logit_laplace=True), "head/conv"),
    (CNNDecoder(32, (1, 1), 1, width=6), None),
    (DVAEDecoder(8, 1, width=6), "head"),
])
def test_images_depend_on_the_image_part_alone_and_log_scales_on_the_rest(draw_params, context, decoder, last_layer):
    params = {name: array.requires_grad_() for name, array in draw_params(decoder).items()}
    latents_BhwD = torch.randn(2, 2, 2, 6)
    made = apply(decoder.forward, params, Codes(latents_BhwD, latents_BhwD), context)
    for name, array in params.items():
        in_part = torch.zeros_like(array, dtype=torch.bool)
        decoder.image_part(name, in_part).fill_(True)
        if last_layer is None or not name.startswith(last_layer + "/"):
            assert in_part.all(), name
            continue
        of_image, of_scale = (
            torch.autograd.grad(output.sum(), array, retain_graph=True)[0] != 0
            for output in (made.mean_BCHW, made.log_scale_BCHW))
        assert of_image[in_part].any() and not of_image[~in_part].any(), name
        assert of_scale[~in_part].any() and not of_scale[in_part].any(), name
