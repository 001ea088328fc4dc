"""Which arrays of a taming-transformers checkpoint are the parameters of a CNN-VQGAN here.

Names here are those of `params/tokenizer/` (vqim/tokenizer/cnn.py, quantizer/vector.py, quantizer/gumbel.py), with
slashes; names there are those of `state_dict` in a checkpoint of `taming.models.vqgan`, `VQModel` or `GumbelVQ`, with
dots.

    O output channels, I input channels of a kernel; V codes
"""
import re
from collections.abc import Callable, Iterable

import numpy as np

FILES = ("",)
"""What names of each file are preceded by: there is one, with the whole model."""

IGNORED = ("loss.",)
"""Beginnings of names that belong to training alone: the discriminator and LPIPS."""

_COMPOSED: dict[str, tuple[tuple[str, ...], Callable[..., np.ndarray]]] = {
    "quantizer/logits/kernel_IO": (
        ("quantize.proj.weight", "quant_conv.weight"),
        lambda logits, conv: (_matrix(logits) @ _matrix(conv)).T),
    "quantizer/logits/bias_O": (
        ("quantize.proj.weight", "quantize.proj.bias", "quant_conv.bias"),
        lambda logits, logits_bias_O, conv_bias_O: _matrix(logits) @ conv_bias_O + logits_bias_O),
    "quantizer/codebook_VD": (
        ("quantize.embed.weight", "post_quant_conv.weight", "post_quant_conv.bias"),
        lambda codes_VI, conv, bias_O: codes_VI @ _matrix(conv).T + bias_O),
}
"""Parameters of a GumbelVQ, which has 1x1 convolutions before its logits and after its codes: two linear maps after
each other are one, and of vectors mixed with weights that add up to one, so is the mixture."""

_RULES = (
    (r"^quantizer/codebook_VZ$", "quantize/embedding/weight"),
    (r"^quantizer/project_in/", "quant_conv/"),
    (r"^quantizer/project_out/", "post_quant_conv/"),
    (r"/blocks/", "/block/"),
    (r"/attention/(\d+)/", r"/attn/\1/"),
    (r"/middle/attention/", "/middle/attn_1/"),
    (r"/middle/", "/mid/"),
    (r"^encoder/(.*)/resample/", r"encoder/\1/downsample/"),
    (r"^decoder/(.*)/resample/", r"decoder/\1/upsample/"),
    (r"/attention/(q|k|v)(uery|ey|alue)/", r"/\1/"),
    (r"/attention/out/", "/proj_out/"),
    (r"/shortcut/", "/nin_shortcut/"),
    (r"/(norm|conv)_(\d)/", r"/\1\2/"),
    (r"/head/(norm|conv)/", r"/\1_out/"),
    (r"/(kernel_OIHW|kernel_IO|gain_C)$", "/weight"),
    (r"/bias_[OC]$", "/bias"),
    (r"/", "."),
)


def original_names(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For each parameter of a network here, the names of the arrays there that it is made of.

    Args:
      names: of all parameters of the tokenizer. taming-transformers counts the decoder's levels from the highest
        resolution, where it ends; here they are counted from the lowest, where it begins.
    """
    names = list(names)
    num_levels = 1 + max((_level(name) for name in names), default=0)
    return {name: _COMPOSED[name][0] if name in _COMPOSED else (_original_name(name, num_levels),) for name in names}


def to_array(name: str, *arrays: np.ndarray) -> np.ndarray:
    """The parameter of this name, made of the arrays that `original_names` says.

    Raises:
      ValueError: they do not fit each other, or are no 1x1 convolutions [O, I, 1, 1] where matrices are here.
    """
    if name in _COMPOSED:
        return _COMPOSED[name][1](*arrays)
    return _matrix(arrays[0]).T if name.endswith("/kernel_IO") else arrays[0]


def _matrix(kernel: np.ndarray) -> np.ndarray:
    if kernel.shape[2:] != (1, 1):
        raise ValueError(f"expected a 1x1 convolution [O, I, 1, 1], got {list(kernel.shape)}")
    return kernel[:, :, 0, 0]


def _level(name: str) -> int:
    found = re.match(r"decoder/levels/(\d+)/", name)
    return int(found[1]) if found else 0


def _original_name(name: str, num_levels: int) -> str:
    name = re.sub(r"^encoder/levels/", "encoder/down/", name)
    name = re.sub(r"^decoder/levels/\d+/", f"decoder/up/{num_levels - 1 - _level(name)}/", name)
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name
