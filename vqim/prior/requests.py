"""What a user asks of a prior, checked: classes by name or number, and tokens.

    N images, P positions, K codes a position
"""
import re
from collections.abc import Sequence

import numpy as np

from vqim.prior.objective import PriorObjective
from vqim.tokenizer.model import ImageTokenizer


def one_each(labels: Sequence[str | int] | np.ndarray | int) -> Sequence[str | int] | np.ndarray:
    """A class for each image: -1, which is none, where only the number of images is given.

    Raises:
      ValueError: there is no image.
    """
    classes = [-1] * int(labels) if isinstance(labels, int | np.integer) else labels
    if not len(classes):
        raise ValueError("labels must ask for one image or more, got none")
    return classes


def class_number(word: str | int, prior: PriorObjective, names: Sequence[str]) -> int:
    """The number of a class that is given by its name or number; -1 is no class.

    Raises:
      ValueError: there is no such class, the prior has no classes, the prior was never trained on images without a
        class, or the word is both a name and another class's number.
    """
    num_classes, text = prior.num_classes, str(word)
    by_name = names.index(text) if isinstance(word, str) and text in names and num_classes else None
    by_number = int(text) if re.fullmatch("-?[0-9]+", text) and -1 <= int(text) < num_classes else None
    if by_name is not None and by_number is not None and by_name != by_number:
        raise ValueError(f"labels: {text!r} is the name of class {by_name} and the number of another one, "
                         f"{names[by_number]!r}; give the number {by_name}, or the other's name")
    found = by_number if by_name is None else by_name
    if found is None:
        what = f"class numbers below {num_classes} or names among {list(names)[:12]}" if num_classes else (
            "left out: this prior knows no classes")
        raise ValueError(f"labels must be {what}; got {text!r}")
    if found == -1 and num_classes and not getattr(prior.prior, "class_dropout_rate", 1.0):
        raise ValueError("labels must be classes: this prior was trained with every image's class "
                         "(class_dropout_rate 0), so -1 would draw from what was never trained")
    return found


def check_tokens(tokens_NPK: np.ndarray, tokenizer: ImageTokenizer, may_be_missing: bool = False) -> np.ndarray:
    """Checks tokens [N, P, K] against a tokenizer's grid and returns them as int64; -1 marks tokens that are missing.

    Raises:
      ValueError: the shape is wrong, the tokens are not integers, or one is outside its level's vocabulary.
    """
    grid = tokenizer.grid
    shape = (grid.num_positions, grid.num_channels)
    if tokens_NPK.shape[1:] != shape or tokens_NPK.dtype.kind not in "iu":
        raise ValueError(f"tokens must be integers [N, {shape[0]}, {shape[1]}], got {tokens_NPK.dtype} "
                         f"{list(tokens_NPK.shape)}")
    lowest = -1 if may_be_missing else 0
    for level, part in zip(grid.levels, grid.split(tokens_NPK), strict=True):
        wrong = part[(part < lowest) | (part >= level.vocabulary)]
        if wrong.size:
            raise ValueError(f"tokens must be from {lowest} to {level.vocabulary - 1}, got {wrong.flat[0]}")
    return tokens_NPK.astype(np.int64)
