"""Tiny tokenizers with random parameters, and small real images."""
import numpy as np
import pytest

from vqim.third_party.noto_emoji import find_dataset
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder


@pytest.fixture
def make_tokenizer():
    """`make_tokenizer()`: 16x16 images to 4x4 tokens of 32; encoder and decoder differ in width."""
    def make(dropout_rate=0.0, vocabulary=32, normalize=True):
        return ImageTokenizer(
            ViTEncoder(16, 4, width=32, num_layers=2, num_heads=4, hidden=48, dropout_rate=dropout_rate),
            VectorQuantizer(32, 40, vocabulary, code_dim=4, normalize=normalize),
            ViTDecoder(16, 4, width=40, num_layers=2, num_heads=4, hidden=48, dropout_rate=dropout_rate),
            image_size=16)
    return make


@pytest.fixture(scope="session")
def emoji():
    """32 emoji of 16x16 pixels, uint8 [B, H, W, C]."""
    with np.load(find_dataset()) as arrays:
        return np.ascontiguousarray(arrays["images"][::60, ::4, ::4])
