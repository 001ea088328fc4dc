"""Which arrays of OpenAI's encoder.pkl and decoder.pkl are the parameters of a dVAE here.

Names here are those of `params/tokenizer/` (vqim/tokenizer/dvae.py and quantizer/gumbel.py), with slashes; names there
are those of the modules' `state_dict`s, with dots, after `encoder.` or `decoder.` for the file that they are in.

    V codes, D their vectors' width
"""
import re
from collections.abc import Iterable

import numpy as np

FILES = ("encoder.", "decoder.")
"""What names of each file are preceded by."""

IGNORED: tuple[str, ...] = ()

CODEBOOK = "quantizer/codebook_VD"


def original_names(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For each parameter of a network here, the names of the arrays there that it is made of.

    One, but for the codebook: it is made of the kernel and the bias of the decoder's first convolution.
    """
    return {name: ("decoder.blocks.input.w", "decoder.blocks.input.b") if name == CODEBOOK else (_original_name(name),)
            for name in names}


def to_array(name: str, *arrays: np.ndarray) -> np.ndarray:
    """The parameter of this name, made of the arrays that `original_names` says.

    A 1x1 convolution of a one-hot vector is a row of a table, and one of a distribution, whose weights add up to one,
    is a mean of rows: in both cases the bias [D] may be added to every row.

    Raises:
      ValueError: the codebook's array is no 1x1 convolution.
    """
    if name != CODEBOOK:
        return arrays[0]
    kernel, bias_D = arrays
    if kernel.shape[2:] != (1, 1):
        raise ValueError(f"expected a 1x1 convolution [D, V, 1, 1], got {list(kernel.shape)}")
    return kernel[:, :, 0, 0].T + bias_D


def _original_name(name: str) -> str:
    words = {"groups": "group", "blocks": "block", "convs": "res_path/conv"}
    name = re.sub(r"(?<=/)(groups|blocks|convs)/(\d+)(?=/)",  # counted from 1 there
                  lambda found: f"{words[found[1]]}_{int(found[2]) + 1}", name)
    name = re.sub(r"/shortcut/", "/id_path/", name)
    name = re.sub(r"/conv_in/", "/input/", name)
    name = re.sub(r"/head/", "/output/conv/", name)
    name = re.sub(r"/kernel_OIHW$", "/w", name)
    name = re.sub(r"/bias_O$", "/b", name)
    return re.sub(r"^(encoder|decoder)/", r"\1/blocks/", name).replace("/", ".")
