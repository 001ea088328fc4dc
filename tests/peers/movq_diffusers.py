"""Our modulated decoder beside diffusers' VQModel with norm_type='spatial', from one random state dict.

    pip install diffusers            # in an environment of its own that also has torch and vqim
    python -m tests.peers.movq_diffusers

Prints how far the encoder's latents, the codes, and each part of the decoder are apart, for a model of Kandinsky's
layout at small widths, and how many parameters both have at Kandinsky's widths. Exits with an error where they differ.
"""
import torch
from diffusers import VQModel
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.nn.convolution import SpatialNorm
from vqim.nn.module import apply, spec
from vqim.runtime.torch import TorchKernels
from vqim.tokenizer.cnn import CNNDecoder, CNNEncoder
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.quantizer.multichannel import MultichannelQuantizer

MULTIPLIERS, LAYERS, WIDTH, VOCABULARY = (1, 2, 2, 4), 2, 4, 50
TOLERANCE = 2e-5


def make_peer(channels: int, vocabulary: int) -> VQModel:
    """A model as Kandinsky 2 has it (MoVQGAN, f8): attention at the lowest resolution, every norm modulated."""
    return VQModel(
        down_block_types=["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
        block_out_channels=[channels * multiplier for multiplier in MULTIPLIERS], layers_per_block=LAYERS,
        latent_channels=WIDTH, num_vq_embeddings=vocabulary, vq_embed_dim=WIDTH, norm_type="spatial")


def make_ours(channels: int, vocabulary: int) -> ImageTokenizer:
    """The same in our parts."""
    class Norm(SpatialNorm):
        def __init__(self, num_features: int):
            super().__init__(num_features, WIDTH)

    sizes = {"channels": channels, "multipliers": MULTIPLIERS, "num_blocks": LAYERS, "width": WIDTH}
    return ImageTokenizer(
        CNNEncoder(**sizes), MultichannelQuantizer(WIDTH, WIDTH, vocabulary, code_dim=WIDTH, channels=1),
        CNNDecoder(**sizes, norm=Norm), image_size=64)


NAMES = [
    ("mid_block.resnets.0", "middle/block_1"), ("mid_block.resnets.1", "middle/block_2"),
    ("mid_block.attentions.0", "middle/attention"), ("down_blocks", "levels"), ("up_blocks", "levels"),
    ("downsamplers.0", "resample"), ("upsamplers.0", "resample"), ("resnets", "blocks"), ("attentions", "attention"),
    ("conv_shortcut", "shortcut"), ("conv_norm_out", "head.norm"), ("conv_out", "head.conv"),
    ("quantize.embedding.weight", "quantizer/codebook_VZ"), ("post_quant_conv", "quantizer/project_out"),
    ("quant_conv", "quantizer/project_in"), ("norm1", "norm_1"), ("norm2", "norm_2"), ("conv1", "conv_1"),
    ("conv2", "conv_2"), ("norm_layer", "norm"), ("conv_y", "scale"), ("conv_b", "shift"), ("spatial_norm", "norm"),
    ("group_norm", "norm"), ("to_q", "attention.query"), ("to_k", "attention.key"), ("to_v", "attention.value"),
    ("to_out.0", "attention.out"), (".", "/"),
]


def convert(peer: VQModel, ours: nn.Module) -> dict[str, Tensor]:
    """The peer's state dict under our names."""
    arrays, leaves = {}, spec(ours)
    for name, array in peer.state_dict().items():
        for theirs, our in NAMES:
            name = name.replace(theirs, our)
        stem, _, kind = name.rpartition("/")
        if kind == "weight":
            kind = next(kind for kind in ("kernel_OIHW", "kernel_IO", "gain_C") if f"{stem}/{kind}" in leaves)
            array = array.flatten(1).mT if kind == "kernel_IO" else array
        elif kind == "bias":
            kind = next(kind for kind in ("bias_O", "bias_C") if f"{stem}/{kind}" in leaves)
        arrays[f"{stem}/{kind}"] = array
    assert arrays.keys() == leaves.keys(), sorted(arrays.keys() ^ leaves.keys())
    return arrays


def record(modules: dict[str, nn.Module], found: dict[str, Tensor]) -> None:
    """Keeps the output of each module under its name."""
    for name, module in modules.items():
        module.register_forward_hook(lambda _, __, output, name=name: found.__setitem__(name, output))


def parts_of(decoder: nn.Module, is_peer: bool) -> dict[str, nn.Module]:
    """The decoder's parts in the order in which they run, under one name on both sides."""
    if is_peer:
        levels, middle, head = decoder.up_blocks, decoder.mid_block, decoder.conv_norm_out
    else:
        levels, middle, head = decoder.levels, decoder.middle, decoder.head.norm
    parts = {"conv_in": decoder.conv_in, "middle": middle}
    for i, level in enumerate(levels):
        for j, block in enumerate(level.resnets if is_peer else level.blocks):
            parts |= {f"level {i} block {j}": block,
                      f"level {i} block {j} norm 1": block.norm1 if is_peer else block.norm_1}
        parts[f"level {i}"] = level
    return parts | {"head norm": head}


def main() -> None:
    """Compares both, part by part."""
    torch.manual_seed(0)
    peer, ours = make_peer(32, VOCABULARY).eval(), make_ours(32, VOCABULARY)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        peer.quantize.embedding.weight.normal_()
        arrays, images = convert(peer, ours), torch.rand(2, 3, 64, 64)
        theirs_found: dict[str, Tensor] = {}
        ours_found: dict[str, Tensor] = {}
        record(parts_of(peer.decoder, True), theirs_found)
        record(parts_of(ours.decoder, False), ours_found)
        context = Context(TorchKernels())
        quantized, reconstruction = apply(ours.forward, arrays, images, context)
        latents = peer.encode(2 * images - 1).latents
        _, _, (_, _, indices) = peer.quantize(latents)
        assert torch.equal(indices, quantized.indices[0].flatten()), "codes differ"
        assert indices.unique().numel() > 10
        image = (peer.decode(latents).sample + 1) / 2
    pairs = {name: (ours_found[name], theirs_found[name]) for name in theirs_found}
    pairs["image"] = (reconstruction.mean_BCHW, image)
    worst = 0.0
    for name, (our, their) in pairs.items():
        gap = ((our - their).abs().max() / their.abs().max()).item()
        worst = max(worst, gap)
        print(f"{name:24} {str(tuple(their.shape)):20} largest {their.abs().max().item():8.3f}  relative gap {gap:.1e}")
    assert worst < TOLERANCE, f"the largest relative gap is {worst:.1e}"
    with torch.device("meta"):
        large, counted = make_peer(128, 16384), sum(leaf.size for leaf in spec(make_ours(128, 16384)).values())
    expected = sum(parameter.numel() for parameter in large.parameters())
    print(f"parameters at Kandinsky's widths: diffusers {expected:,}, ours {counted:,}")
    assert expected == counted


if __name__ == "__main__":
    main()
