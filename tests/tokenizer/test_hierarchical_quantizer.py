"""A hierarchy of codebooks: which latents each level quantises, what the decoder gets, there and back."""
import pytest
import torch

from vqim.contracts.grid import Level, TokenGrid
from vqim.nn.convolution import Downsample, ResidualBlock, Upsample
from vqim.nn.module import apply
from vqim.optim.schedules import Constant
from vqim.state.leaf import select
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.quantizer.gumbel import GumbelQuantizer
from vqim.tokenizer.quantizer.hierarchical import HierarchicalQuantizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder


def make_quantizer(top=None, bottom=None, width_in=16):
    return HierarchicalQuantizer(
        width_in, top or VectorQuantizer(64, 32, vocabulary=12, code_dim=4),
        bottom or VectorQuantizer(16 + 32, 8, vocabulary=20, code_dim=4), num_blocks=1)


@pytest.fixture(name="tokenizer")
def make_tokenizer():
    return ImageTokenizer(ViTEncoder(16, 4, 16, 1, 2, 16), make_quantizer(), ViTDecoder(16, 4, 40, 1, 2, 16), 16)


def first(x_BCHW):
    return x_BCHW.permute(0, 3, 1, 2)


def last(x_BhwD):
    return x_BhwD.permute(0, 2, 3, 1)


def test_the_top_comes_first_at_half_the_size():
    assert make_quantizer().levels(8, 6) == (Level(4, 3, 1, 12), Level(8, 6, 1, 20))


def test_each_level_quantises_and_the_decoder_gets_what_the_definition_says(draw_params, context):
    quantizer = make_quantizer()
    params, latents = draw_params(quantizer), torch.randn(2, 4, 6, 16)

    def run(module, name, *args):
        return apply(module.forward, select(params, f"{name}/"), *args, context)

    down = run(ResidualBlock(64, 64), "down_blocks/0", run(Downsample(16, 64), "down", first(latents)))
    top = run(quantizer.top, "top", last(down))
    up = run(ResidualBlock(32, 32), "condition_blocks/0", first(top.codes.latents_BhwD))
    condition = last(run(Upsample(32, 32), "condition", up))
    bottom = run(quantizer.bottom, "bottom", torch.cat([latents, condition], -1))
    wide = last(run(Upsample(32, 32), "widen", first(top.codes.latents_BhwD)))

    quantized = apply(quantizer.forward, params, latents, context)
    assert [tuple(indices.shape) for indices in quantized.indices] == [(2, 2, 3, 1), (2, 4, 6, 1)]
    for found, expected in zip(quantized.indices, (*top.indices, *bottom.indices), strict=True):
        assert torch.equal(found, expected) and found.unique().numel() > 2
    assert quantizer.width_out == 40
    torch.testing.assert_close(quantized.codes.latents_BhwD, torch.cat([wide, bottom.codes.latents_BhwD], -1))
    expected = {**{f"top_{name}": value for name, value in top.losses.items()},
                **{f"bottom_{name}": value for name, value in bottom.losses.items()}}
    assert set(expected) == {"top_codebook", "top_commitment", "bottom_codebook", "bottom_commitment"}
    assert {name: value.item() for name, value in quantized.losses.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()})


def test_lookup_gives_the_vectors_that_quantising_gave(draw_params, context):
    quantizer = make_quantizer()
    params = draw_params(quantizer)
    quantized = apply(quantizer.forward, params, torch.randn(2, 4, 6, 16), context)
    found = apply(quantizer.lookup, params, quantized.indices, context)
    torch.testing.assert_close(found.latents_BhwD, quantized.codes.latents_BhwD, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.vectors_BhwZ, quantized.codes.vectors_BhwZ, rtol=1e-4, atol=1e-4)


def test_vectors_are_the_tops_four_times_each_and_the_bottoms_beside_them(draw_params, context):
    quantizer = make_quantizer()
    params = draw_params(quantizer)
    quantized = apply(quantizer.forward, params, torch.randn(2, 4, 6, 16), context)
    top, bottom = (torch.nn.functional.normalize(params[f"{level}/codebook_VZ"], dim=-1)[indices[..., 0]]
                   for level, indices in zip(("top", "bottom"), quantized.indices, strict=True))
    vectors = quantized.codes.vectors_BhwZ
    assert vectors.shape == (2, 4, 6, 4 + 4)
    torch.testing.assert_close(vectors[..., 4:], bottom, rtol=1e-5, atol=1e-6)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        torch.testing.assert_close(vectors[:, row::2, column::2, :4], top, rtol=1e-5, atol=1e-6)


def test_images_of_tokens_are_the_reconstructions(tokenizer, draw_params, context):
    assert tokenizer.grid == TokenGrid((Level(2, 2, 1, 12), Level(4, 4, 1, 20)))
    params, images = draw_params(tokenizer), torch.rand(3, 3, 16, 16)
    tokens = apply(tokenizer.tokens, params, images, context)
    assert tokens.shape == (3, 4 + 16, 1)
    quantized, reconstruction = apply(tokenizer.forward, params, images, context)
    top, bottom = tokenizer.grid.split(tokens)
    assert torch.equal(top, quantized.indices[0]) and torch.equal(bottom, quantized.indices[1])
    decoded = apply(tokenizer.images, params, tokens, context)
    torch.testing.assert_close(decoded, reconstruction.mean_BCHW.clamp(0, 1), rtol=1e-3, atol=1e-3)


def test_a_hierarchy_for_a_top_makes_three_levels(draw_params, context):
    inner = HierarchicalQuantizer(32, VectorQuantizer(32, 32, 6, 4), VectorQuantizer(64, 32, 9, 4), num_blocks=1)
    quantizer = make_quantizer(top=inner, bottom=VectorQuantizer(16 + 64, 8, vocabulary=20, code_dim=4))
    assert quantizer.levels(8, 8) == (Level(2, 2, 1, 6), Level(4, 4, 1, 9), Level(8, 8, 1, 20))
    params = draw_params(quantizer)
    quantized = apply(quantizer.forward, params, torch.randn(2, 8, 8, 16), context)
    assert [indices.shape[1] for indices in quantized.indices] == [2, 4, 8]
    found = apply(quantizer.lookup, params, quantized.indices, context)
    torch.testing.assert_close(found.latents_BhwD, quantized.codes.latents_BhwD, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.vectors_BhwZ, quantized.codes.vectors_BhwZ, rtol=1e-3, atol=1e-3)


def test_scheduled_numbers_of_its_parts_have_the_parts_names():
    quantizer = make_quantizer(top=GumbelQuantizer(64, 32, 12, Constant(0.5)))
    assert quantizer.host_scalars(3) == {"top/temperature": 0.5, "top/kl_weight": 5e-4}
    assert make_quantizer().host_scalars(3) == {}


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"bottom.width_in must be width_in \+ top.width_out = 16 \+ 32, got 16"):
        make_quantizer(bottom=VectorQuantizer(16, 8, vocabulary=20, code_dim=4))
    with pytest.raises(ValueError, match="height and width must be even to be halved, got 4x5"):
        make_quantizer().levels(4, 5)
    inner = HierarchicalQuantizer(48, VectorQuantizer(32, 32, 6, 4), VectorQuantizer(80, 32, 9, 4))
    with pytest.raises(ValueError, match="bottom must give one level of codes, got 2; let top be the hierarchy"):
        make_quantizer(bottom=inner).levels(8, 8)
