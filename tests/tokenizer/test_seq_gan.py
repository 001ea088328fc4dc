"""SeQ-GAN's networks: the counts of its Tables 1, 3 and 7, by hand; shapes; what the second phase adds."""
import pytest
import torch

from tests.tokenizer.parameters import count_parameters
from vqim.nn.module import apply, spec
from vqim.runtime.torch import TorchRuntime
from vqim.tokenizer.cnn import CNNEncoder
from vqim.tokenizer.model import Codes
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.seq_gan import SeQGANDecoder
from vqim.training.state import start

F16 = (1, 1, 2, 2, 4)
TINY = {"channels": 32, "multipliers": (1, 2), "num_blocks": 1, "width": 12}


def conv(num_inputs, num_outputs, size=3):
    return num_inputs * num_outputs * size**2 + num_outputs


def block(num_inputs, num_outputs):
    shortcut = 0 if num_inputs == num_outputs else conv(num_inputs, num_outputs, 1)
    return 2 * num_inputs + conv(num_inputs, num_outputs) + 2 * num_outputs + conv(num_outputs, num_outputs) + shortcut


def count(num_blocks, num_attention):
    return (count_parameters(CNNEncoder(128, F16, 2, 256, attention=None))
            + count_parameters(VectorQuantizer(256, 256, 1024, code_dim=None, normalize=False))
            + count_parameters(SeQGANDecoder(128, F16, num_blocks, 256, num_attention)))


def test_the_encoder_has_the_blocks_of_table_7():
    # f1, f2: two blocks of 128; f3, f4: of 256; f5: four of 512; a halving after each but the last.
    blocks = (4 * block(128, 128) + block(128, 256) + 3 * block(256, 256) + block(256, 512) + 3 * block(512, 512))
    halvings = 2 * conv(128, 128) + 2 * conv(256, 256)
    expected = conv(3, 128) + blocks + halvings + 2 * 512 + conv(512, 256)
    assert count_parameters(CNNEncoder(128, F16, 2, 256, attention=None)) == expected == 26_143_232


def test_the_decoder_has_the_blocks_of_table_7():
    blocks = 4 * block(512, 512) + 4 * block(256, 256) + 4 * block(128, 128)
    doublings = conv(512, 256) + conv(256, 256) + conv(256, 128) + conv(128, 128)
    expected = conv(256, 512) + blocks + doublings + 2 * 128 + conv(128, 3)
    assert count_parameters(SeQGANDecoder(128, F16, 2, 256)) == expected == 28_190_595


# Millions in Table 1, and in section 6.1 for the second phase.
@pytest.mark.parametrize(("num_blocks", "num_attention", "paper", "parameters"), [
    (2, 0, 54.5, 54_595_971), (4, 0, 70.0, 69_946_755), (2, 2, 61.4, 61_442_435), (2, 1, 57.9, 58_019_203)])
def test_the_tokenizers_of_the_paper_have_their_parameters(num_blocks, num_attention, paper, parameters):
    assert count(num_blocks, num_attention) == parameters
    assert parameters / 1e6 == pytest.approx(paper, rel=2.1e-3)


def test_attention_adds_the_3_4_million_between_the_phases():
    by_hand = sum(2 * (4 * (width**2 + width) + 2 * width) for width in (512, 256, 256, 128, 128))
    assert count(2, 1) - count(2, 0) == by_hand == 3_423_232
    assert round(by_hand / 1e6, 1) == round(57.9 - 54.5, 1)


@pytest.mark.parametrize("num_attention", [0, 2])
def test_codes_become_images_at_the_resolution_of_the_highest_stage(num_attention, draw_params, context):
    decoder = SeQGANDecoder(**TINY, num_attention=num_attention)
    latents = torch.randn(2, 4, 4, 12)
    made = apply(decoder.forward, draw_params(decoder), Codes(latents, latents), context)
    assert made.mean_BCHW.shape == (2, 3, 8, 8) and made.mean_BCHW.dtype == torch.float32
    assert made.location_BCHW is None


def test_every_parameter_of_the_decoder_moves_the_image(draw_params, context):
    decoder = SeQGANDecoder(**TINY | {"channels": 64}, num_attention=1)  # a norm of one channel would hide its bias
    arrays = {name: array.requires_grad_() for name, array in draw_params(decoder).items()}
    latents = torch.randn(2, 4, 4, 12)
    made = apply(decoder.forward, arrays, Codes(latents, latents), context)
    gradients = torch.autograd.grad(made.mean_BCHW.square().sum(), list(arrays.values()))
    still = [name for name, gradient in zip(arrays, gradients, strict=True) if not gradient.abs().max() > 1e-5]
    assert still == [name for name in arrays if name.endswith("key/bias_O")]  # it changes no softmax


def test_the_second_phases_decoder_starts_as_the_first_ones_function(context):
    first, second = SeQGANDecoder(**TINY), SeQGANDecoder(**TINY, num_attention=1)
    fresh = {name for name in spec(second) if name not in spec(first)}
    assert fresh and all("/attention/" in name for name in fresh) and spec(first).keys() <= spec(second).keys()
    arrays = start(spec(second), 0, TorchRuntime()).arrays
    given = start(spec(first), 1, TorchRuntime()).arrays
    latents = torch.randn(2, 4, 4, 12)
    codes = Codes(latents, latents)
    before = apply(first.forward, given, codes, context).mean_BCHW
    after = apply(second.forward, arrays | given, codes, context).mean_BCHW
    assert torch.equal(before, after) and before.std() > 0.01


def test_a_negative_number_of_attention_pairs_is_refused():
    with pytest.raises(ValueError, match="num_attention must be at least 0, got -1"):
        SeQGANDecoder(**TINY, num_attention=-1)
