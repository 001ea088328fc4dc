"""The tokenizer as a whole: tokens in raster order, there and back, parts that have to fit."""
import numpy as np
import pytest
import torch

from vqim.nn.context import Context
from vqim.nn.module import apply
from vqim.runtime.torch import TorchKernels
from vqim.tokenizer.grid import Level, TokenGrid
from vqim.tokenizer.model import ImageTokenizer, images_to_float
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
