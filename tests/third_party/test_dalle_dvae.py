"""The names of DALL-E's dVAE: with a peer's weights under them, our network computes what the peer computes."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from launch.torch_weights import convert
from tests.third_party.dalle_reference import Decoder, Encoder
from vqim.contracts.context import Context
from vqim.nn.module import apply, spec
from vqim.optim.schedules import Constant
from vqim.registry.config import ConfigError
from vqim.runtime.torch import TorchKernels
from vqim.third_party import dalle_dvae
from vqim.tokenizer.dvae import DVAEDecoder, DVAEEncoder
from vqim.tokenizer.losses import LOG_SCALE_FLOOR
from vqim.tokenizer.model import Codes, ImageTokenizer
from vqim.tokenizer.quantizer.gumbel import GumbelQuantizer


def make_tokenizer(hidden, num_blocks, vocabulary, width, image_size):
    return ImageTokenizer(
        DVAEEncoder(hidden, num_blocks, vocabulary),
        GumbelQuantizer(vocabulary, width, vocabulary, Constant(1.0), straight_through=False, project=False),
        DVAEDecoder(hidden, num_blocks, width), image_size)


@pytest.fixture(scope="module")
def peers():
    """Encoder and decoder with random weights; signals keep their size, and no code is likelier than the others."""
    torch.manual_seed(0)
    modules = Encoder(16, 2, 24), Decoder(16, 2, 24, 12)
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.mul_(0.1 if parameter.ndim == 1 else 2 * parameter[0].numel() ** -0.5)
        modules[0].blocks.output.conv.b.sub_(modules[0](0.8 * random_images() + 0.1).mean((0, 2, 3)))
    return modules


def random_images():
    """Of one colour each, with noise."""
    return (torch.rand(16, 3, 1, 1) + 0.2 * torch.randn(16, 3, 16, 16)).clamp(0, 1)


def arrays(peers):
    return {prefix + name: tensor.numpy().copy()
            for prefix, module in zip(("encoder.", "decoder."), peers, strict=True)
            for name, tensor in module.state_dict().items()}


def our_params(peers, tokenizer):
    return {name: torch.from_numpy(array) for name, array in
            convert(arrays(peers), spec(tokenizer), dalle_dvae).items()}


def test_logits_codes_and_reconstructions_are_the_peers(peers):
    tokenizer, images, context = make_tokenizer(16, 2, 24, 12, 16), random_images(), Context(TorchKernels())
    params = our_params(peers, tokenizer)
    with torch.no_grad():
        logits = peers[0](0.8 * images + 0.1)
        codes = logits.argmax(1)
        statistics = peers[1](F.one_hot(codes, 24).permute(0, 3, 1, 2).float())
        tokens = apply(tokenizer.tokens, params, images, context)
        reconstruction = apply(tokenizer.forward, params, images, context)[1]
        encoder = {name.removeprefix("encoder/"): x for name, x in params.items() if name.startswith("encoder/")}
        ours = apply(tokenizer.encoder.forward, encoder, images, context)
    torch.testing.assert_close(ours, logits.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
    assert codes.unique().numel() > 3
    assert torch.equal(tokens[..., 0], codes.flatten(1))
    torch.testing.assert_close(reconstruction.location_BCHW, statistics[:, :3], rtol=1e-5, atol=1e-5)
    log_scale = F.softplus(statistics[:, 3:] - LOG_SCALE_FLOOR) + LOG_SCALE_FLOOR  # the peer has no floor
    torch.testing.assert_close(reconstruction.log_scale_BCHW, log_scale, rtol=1e-5, atol=1e-5)
    mean = (statistics[:, :3].sigmoid() - 0.1) / 0.8
    torch.testing.assert_close(reconstruction.mean_BCHW, mean, rtol=0, atol=1e-5)


def test_a_mixture_of_codes_is_decoded_as_the_peer_decodes_it(peers):
    # The codebook has the bias of the convolution in every row; weights that add up to one keep it once.
    tokenizer, context = make_tokenizer(16, 2, 24, 12, 16), Context(TorchKernels())
    params = our_params(peers, tokenizer)
    weights = torch.randn(2, 2, 2, 24).softmax(-1)
    with torch.no_grad():
        expected = peers[1](weights.permute(0, 3, 1, 2))[:, :3]
        mixture = weights @ params["quantizer/codebook_VD"]
        decoded = apply(tokenizer.decode, params, Codes(mixture, mixture), context)
    torch.testing.assert_close(decoded.location_BCHW, expected, rtol=1e-5, atol=1e-5)


def test_the_published_models_names_and_shapes_are_all_used_once():
    with torch.device("meta"):
        peers = Encoder(256, 2, 8192), Decoder(256, 2, 8192, 128)
    shapes = {prefix + name: tuple(tensor.shape)
              for prefix, module in zip(("encoder.", "decoder."), peers, strict=True)
              for name, tensor in module.state_dict().items()}
    leaves = spec(make_tokenizer(256, 2, 8192, 128, 256))
    originals = dalle_dvae.original_names(leaves)
    assert sorted(name for names in originals.values() for name in names) == sorted(shapes)
    for name, names in originals.items():
        if name != "quantizer/codebook_VD":
            assert leaves[name].shape == shapes[names[0]], name
    assert leaves["quantizer/codebook_VD"].shape == (8192, 128)


def test_names_as_published_files_have_them():
    originals = dalle_dvae.original_names([
        "encoder/conv_in/kernel_OIHW", "encoder/groups/1/blocks/0/shortcut/bias_O",
        "encoder/groups/3/blocks/1/convs/3/kernel_OIHW", "encoder/head/kernel_OIHW",
        "decoder/groups/0/blocks/0/convs/0/bias_O", "decoder/head/bias_O", "quantizer/codebook_VD"])
    assert list(originals.values()) == [
        ("encoder.blocks.input.w",), ("encoder.blocks.group_2.block_1.id_path.b",),
        ("encoder.blocks.group_4.block_2.res_path.conv_4.w",), ("encoder.blocks.output.conv.w",),
        ("decoder.blocks.group_1.block_1.res_path.conv_1.b",), ("decoder.blocks.output.conv.b",),
        ("decoder.blocks.input.w", "decoder.blocks.input.b")]


def test_a_codebook_that_is_no_1x1_convolution_is_refused(peers):
    weights = arrays(peers) | {"decoder.blocks.input.w": np.zeros((12, 24, 3, 3), np.float32)}
    with pytest.raises(ConfigError, match=r"codebook_VD, made of decoder.blocks.input.w and decoder.blocks.input.b: "
                                          r"expected a 1x1 convolution \[D, V, 1, 1\], got \[12, 24, 3, 3\]"):
        convert(weights, spec(make_tokenizer(16, 2, 24, 12, 16)), dalle_dvae)
