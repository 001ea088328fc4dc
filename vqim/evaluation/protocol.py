"""How a number was measured: what has to be the same before two numbers may be compared.

    B batch, C channels, H W image size
"""
import hashlib
import json
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

# Weights of values by their place, from 1 to 31: sums of 8-bit images up to 256x256 stay below 2^31. They do not repeat
# before 8191 values, a prime, so that an image and its shift by some pixels differ.
_STEP, _PERIOD, _MOST = 2654, 8191, 31

COMPARED = ("measure", "extractor", "weights", "compares", "reference", "reference count", "count", "image size",
            "split", "subset", "labels", "crop", "rounding", "dtype")
"""What of two results has to be the same; the rest, such as a sampler's settings, is what is compared."""


def as_text(protocol: Mapping[str, str]) -> str:
    """The protocol as it stands in summaries and JSON files."""
    return json.dumps(dict(protocol), indent=2)


def of_result(
    measures: Iterable[str], about: Mapping[str, str], count: int, said: Mapping[str, str],
) -> dict[str, str]:
    """The protocol of some measures.

    Args:
      measures: their names.
      about: what is known about the pass (`About.protocol`).
      count: the number of items that were measured.
      said: what the metric says of itself (`Described`), with what it compares.
    """
    return {"measure": ", ".join(measures), **said, "count": str(count), **about}


def differences(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """Why two numbers with these protocols cannot be compared: a sentence for each reason, none if they can be."""
    return [f"{name}: {a.get(name, 'not said')!r} against {b.get(name, 'not said')!r}"
            for name in COMPARED if a.get(name) != b.get(name)]


def image_checksums(images_BCHW: Tensor) -> Tensor:
    """Two whole numbers, int32 [B, 2], that hardly two 8-bit images have in common; the same on any device."""
    values_BN = rearrange((images_BCHW.float() * 255).round(), "b c h w -> b (h w c)").to(torch.int32)
    places_N = torch.arange(values_BN.shape[1], dtype=torch.int32, device=values_BN.device) % _PERIOD
    weights_N = places_N * _STEP % _PERIOD % _MOST + 1
    return torch.stack([values_BN.sum(1, dtype=torch.int32), (values_BN * weights_N).sum(1, dtype=torch.int32)], 1)


class Fingerprint:
    """A short name for a set of images, from their checksums, whatever their order."""

    def __init__(self) -> None:
        self._checksums: list[np.ndarray] = []

    def add(self, checksums_B2: np.ndarray) -> None:
        """Adds images' `image_checksums`."""
        self._checksums.append(checksums_B2.astype("<i4"))

    def state(self) -> dict[str, np.ndarray]:
        """The checksums, int32 [N, 2], for `restore`."""
        return {"checksums": np.concatenate(self._checksums)} if self._checksums else {}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from what `state` gave."""
        self._checksums = list(state.values())

    @property
    def count(self) -> int:
        """The number of images."""
        return sum(map(len, self._checksums))

    def text(self) -> str:
        """Sixteen hexadecimal digits."""
        checksums_N2 = np.concatenate(self._checksums)
        ordered_N2 = checksums_N2[np.lexsort((checksums_N2[:, 1], checksums_N2[:, 0]))]
        return hashlib.sha256(ordered_N2.tobytes()).hexdigest()[:16]
