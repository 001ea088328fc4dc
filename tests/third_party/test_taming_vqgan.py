"""taming-transformers' names: with a peer's weights under them, our network computes what the peer computes."""
import copy

import numpy as np
import pytest
import torch

from launch.torch_weights import convert
from tests.third_party.taming_reference import Model
from vqim.contracts.context import Context
from vqim.nn.module import apply, spec
from vqim.optim.schedules import Constant
from vqim.registry.config import ConfigError
from vqim.runtime.torch import TorchKernels
from vqim.third_party import taming_vqgan
from vqim.tokenizer.cnn import CNNDecoder, CNNEncoder
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.quantizer.gumbel import GumbelQuantizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer

SIZES = {"channels": 32, "multipliers": (1, 2, 1), "num_blocks": 2, "width": 12}


def make_tokenizer(quantizer, image_size=16, **sizes):
    sizes = SIZES | sizes
    return ImageTokenizer(CNNEncoder(**sizes), quantizer, CNNDecoder(**sizes), image_size)


def vector_quantizer():
    return VectorQuantizer(12, 12, 40, code_dim=20, normalize=False)


def gumbel_quantizer():
    return GumbelQuantizer(12, 12, 40, Constant(1.0))


@pytest.fixture(scope="module", params=[False, True], ids=["VQModel", "GumbelVQ"])
def pair(request):
    """A peer with random weights, biases and gains, and our tokenizer for the same weights."""
    torch.manual_seed(0)
    # A GumbelVQ's codes are as wide as its latents, since its logits read what quant_conv gives.
    peer = Model(32, (1, 2, 1), 2, 12, 12 if request.param else 20, 40, gumbel=request.param).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return peer, make_tokenizer(gumbel_quantizer() if request.param else vector_quantizer())


def arrays(peer):
    weights = {name: tensor.numpy().copy() for name, tensor in peer.state_dict().items()}
    # What a real checkpoint has beside the tokenizer.
    return weights | {"loss.discriminator.main.0.weight": np.zeros(3), "loss.perceptual_loss.lin0.model.1.weight":
                      np.zeros(3)}


def run(tokenizer, weights, images):
    """Codes and reconstructions in [0, 1]."""
    params = {name: torch.from_numpy(array) for name, array in
              convert(weights, spec(tokenizer), taming_vqgan).items()}
    context = Context(TorchKernels())
    with torch.no_grad():
        tokens = apply(tokenizer.tokens, params, images, context)
        return tokens, apply(tokenizer.forward, params, images, context)[1].mean_BCHW, params, context


def test_codes_and_reconstructions_are_the_peers(pair):
    peer, tokenizer = pair
    images = torch.rand(3, 3, 16, 16)
    tokens, reconstruction, params, context = run(tokenizer, arrays(peer), images)
    with torch.no_grad():
        codes, expected = peer.codes(2 * images - 1), peer.reconstruct(2 * images - 1)
        latents = peer.encoder(2 * images - 1).permute(0, 2, 3, 1)
    encoder = {name.removeprefix("encoder/"): array for name, array in params.items() if name.startswith("encoder/")}
    ours = apply(tokenizer.encoder.forward, encoder, images, context)
    torch.testing.assert_close(ours, latents, rtol=0, atol=1e-5)
    assert codes.unique().numel() > 3
    assert torch.equal(tokens[..., 0], codes.flatten(1))
    torch.testing.assert_close(reconstruction, (expected + 1) / 2, rtol=0, atol=1e-5)


def test_exchanged_arrays_are_noticed(pair):
    # Two blocks of the same shape: what a mistake in the map of names would do.
    peer, tokenizer = pair
    images = torch.rand(3, 3, 16, 16)
    weights, exchanged = arrays(peer), copy.copy(arrays(peer))
    for suffix in ("conv1.weight", "conv2.weight", "norm1.weight"):
        first, second = (f"decoder.up.0.block.{i}.{suffix}" for i in (1, 2))
        exchanged[first], exchanged[second] = weights[second], weights[first]
    difference = run(tokenizer, exchanged, images)[1] - run(tokenizer, weights, images)[1]
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize(("multipliers", "vocabulary"), [((1, 1, 2, 2, 4), 1024), ((1, 1, 2, 2, 4), 16384)])
def test_the_published_models_names_and_shapes_are_all_used_once(multipliers, vocabulary):
    with torch.device("meta"):
        peer = Model(128, multipliers, 2, 256, 256, vocabulary)
    shapes = {name: tuple(tensor.shape) for name, tensor in peer.state_dict().items()}
    tokenizer = make_tokenizer(VectorQuantizer(256, 256, vocabulary, code_dim=256, normalize=False), 256,
                               channels=128, multipliers=multipliers, width=256)
    leaves = spec(tokenizer)
    originals = taming_vqgan.original_names(leaves)
    used = [name for names in originals.values() for name in names]
    assert sorted(used) == sorted(shapes)
    for name, (original,) in originals.items():
        expected = shapes[original]
        assert leaves[name].shape == (expected[1::-1] if name.endswith("kernel_IO") else expected), name


def test_names_as_published_checkpoints_have_them():
    # Written down from vqgan_imagenet_f16_1024, whose levels are 0 to 4.
    tokenizer = make_tokenizer(VectorQuantizer(256, 256, 1024, code_dim=256), 256, multipliers=(1, 1, 2, 2, 4),
                               width=256)
    originals = taming_vqgan.original_names(spec(tokenizer))
    assert {name: originals[name][0] for name in (
        "encoder/conv_in/kernel_OIHW", "encoder/levels/0/blocks/0/norm_1/gain_C",
        "encoder/levels/4/attention/1/attention/out/kernel_IO", "encoder/levels/3/resample/conv/bias_O",
        "encoder/middle/attention/norm/bias_C", "decoder/levels/0/attention/2/attention/key/bias_O",
        "decoder/levels/4/blocks/2/conv_2/kernel_OIHW", "decoder/levels/0/resample/conv/kernel_OIHW",
        "decoder/levels/1/blocks/0/shortcut/kernel_OIHW", "decoder/head/norm/gain_C", "quantizer/codebook_VZ",
        "quantizer/project_in/kernel_IO", "quantizer/project_out/bias_O",
    )} == {
        "encoder/conv_in/kernel_OIHW": "encoder.conv_in.weight",
        "encoder/levels/0/blocks/0/norm_1/gain_C": "encoder.down.0.block.0.norm1.weight",
        "encoder/levels/4/attention/1/attention/out/kernel_IO": "encoder.down.4.attn.1.proj_out.weight",
        "encoder/levels/3/resample/conv/bias_O": "encoder.down.3.downsample.conv.bias",
        "encoder/middle/attention/norm/bias_C": "encoder.mid.attn_1.norm.bias",
        "decoder/levels/0/attention/2/attention/key/bias_O": "decoder.up.4.attn.2.k.bias",
        "decoder/levels/4/blocks/2/conv_2/kernel_OIHW": "decoder.up.0.block.2.conv2.weight",
        "decoder/levels/0/resample/conv/kernel_OIHW": "decoder.up.4.upsample.conv.weight",
        "decoder/levels/1/blocks/0/shortcut/kernel_OIHW": "decoder.up.3.block.0.nin_shortcut.weight",
        "decoder/head/norm/gain_C": "decoder.norm_out.weight",
        "quantizer/codebook_VZ": "quantize.embedding.weight",
        "quantizer/project_in/kernel_IO": "quant_conv.weight",
        "quantizer/project_out/bias_O": "post_quant_conv.bias",
    }


def refused(weights, quantizer=None, **sizes):
    with pytest.raises(ConfigError) as caught:
        convert(weights, spec(make_tokenizer(quantizer or vector_quantizer(), **sizes)), taming_vqgan)
    return str(caught.value)


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return arrays(Model(32, (1, 2, 1), 2, 12, 20, 40))


def test_what_is_missing_and_what_is_left_over_is_named_on_both_sides(weights):
    weights["encoder.extra.weight"] = weights.pop("encoder.conv_in.weight")
    message = refused(weights)
    assert "encoder/conv_in/kernel_OIHW: not in the file, expected encoder.conv_in.weight" in message
    assert "encoder.extra.weight[32, 3, 3, 3]: in the file, and no parameter here" in message
    assert "loss." not in message and len(message.splitlines()) == 3


def test_another_shape_is_named_on_both_sides(weights):
    message = refused(weights, VectorQuantizer(12, 12, 48, code_dim=20, normalize=False))
    assert ("quantizer/codebook_VZ, made of quantize.embedding.weight: expected [48, 20], got [40, 20]") in message
    assert len(message.splitlines()) == 2


def test_another_network_gives_no_endless_message(weights):
    message = refused(weights, num_blocks=4)
    assert message.splitlines()[-1].startswith("... and ") and len(message.splitlines()) == 22


def test_a_projection_that_is_no_1x1_convolution_is_refused(weights):
    weights["quant_conv.weight"] = np.zeros((20, 12, 3, 3), np.float32)
    assert "made of quant_conv.weight: expected a 1x1 convolution [O, I, 1, 1], got [20, 12, 3, 3]" in refused(weights)
