"""Why codes are not used: where they lie, compared with the latents that look them up, and what helps.

    B images, P latents of an image, V codes, Z their dimensions
"""
import dataclasses
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from vqim.contracts.context import Kernels
from vqim.contracts.evaluation import Lookup
from vqim.evaluation.codebook import entropy_bits
from vqim.tokenizer.quantizer.distance import relative_distance

UNUSED_SHARE = 0.3
"""The share of unused codes from which on there is a diagnosis."""

_LATENTS_PER_CODE = 8
"""With fewer latents in the set, codes may be unused by chance."""


def observe_lookup(lookup: Lookup, kernels: Kernels) -> dict[str, Tensor]:
    """What the diagnosis needs of each image: squared distances of latents and codes, and sums of the latents."""
    z_BPZ, codes_VZ = lookup.latents_BPZ, lookup.codebook_VZ
    squares_BP = z_BPZ.square().sum(-1)
    distance_BPV = (squares_BP[..., None] + relative_distance(z_BPZ, codes_VZ, kernels)).clamp_min(0.0)
    return {"to_code": distance_BPV.amin(2).mean(1), "nearest_V": distance_BPV.amin(1),
            "square": squares_BP.mean(1), "mean_Z": z_BPZ.mean(1)}


class Lookups:
    """Adds up `observe_lookup` over a set of images.

    Args:
      vocabulary: V.
    """

    def __init__(self, vocabulary: int):
        self._nearest_V = np.full(vocabulary, np.inf)
        self._sums: dict[str, np.ndarray] = {}

    def add(self, observed: Mapping[str, np.ndarray], valid_B: np.ndarray) -> None:
        """Adds images; those that are not valid are ignored."""
        rows = {name: np.asarray(value, np.float64)[valid_B] for name, value in observed.items()}
        self._nearest_V = np.minimum(self._nearest_V, rows.pop("nearest_V").min(0, initial=np.inf))
        for name, value in (rows | {"count": np.ones(int(valid_B.sum()))}).items():
            self._sums[name] = self._sums.get(name, 0.0) + value.sum(0)

    def state(self) -> dict[str, np.ndarray]:
        """All that it holds, for `restore`."""
        return {"nearest": self._nearest_V, **{f"sum_{name}": np.asarray(value) for name, value in self._sums.items()}}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from what `state` gave."""
        self._nearest_V = state["nearest"]
        self._sums = {name.removeprefix("sum_"): value for name, value in state.items() if name != "nearest"}

    def result(self, counts_V: np.ndarray) -> "Health | None":
        """What was found, given how often each code was used; None without any lookup."""
        if not self._sums:
            return None
        mean = {name: value / self._sums["count"] for name, value in self._sums.items()}
        spread = mean["square"] - np.square(mean["mean_Z"]).sum()
        unused_V = counts_V == 0
        return Health(
            counts_V, float(np.sqrt(mean["to_code"])), float(np.sqrt(max(spread, 0.0))),
            float(np.sqrt(np.median(self._nearest_V[unused_V]))) if unused_V.any() else None)


@dataclasses.dataclass(frozen=True)
class Health:
    """How a codebook stands to the latents that look it up.

    Attributes:
      counts_V: how often each code is used.
      latent_distance: the distance of a latent from its code, root of the mean square.
      latent_spread: the distance of a latent from the mean latent, root of the mean square.
      unused_distance: the distance of an unused code from the latent nearest to it, the median; None if all are used.
    """

    counts_V: np.ndarray
    latent_distance: float
    latent_spread: float
    unused_distance: float | None

    def numbers(self) -> dict[str, float]:
        """The distances by name."""
        found = {"latent_distance": self.latent_distance, "latent_spread": self.latent_spread}
        return found if self.unused_distance is None else found | {"unused_distance": self.unused_distance}

    def diagnosis(self, ages_V: np.ndarray) -> str | None:
        """Cause and remedy in words; None where few codes are unused, or the set is too small to tell.

        Args:
          ages_V: in how many evaluations in a row, with this one, each code has been unused; 0 for a used one.
        """
        vocabulary, num_unused = len(self.counts_V), int((self.counts_V == 0).sum())
        if (self.unused_distance is None or num_unused < UNUSED_SHARE * vocabulary
                or self.counts_V.sum() < _LATENTS_PER_CODE * vocabulary):
            return None
        found = (f"{num_unused:,} of {vocabulary:,} codes are unused, entropy {entropy_bits(self.counts_V):.2f} of "
                 f"{np.log2(vocabulary):.2f} bits. A latent is {self.latent_distance:.3g} from its code and "
                 f"{self.latent_spread:.3g} from the mean latent, an unused code {self.unused_distance:.3g} from the "
                 "nearest latent. ")
        if (age := np.median(ages_V[ages_V > 0])) > 1:
            found += f"Half of them have been unused in {age:.0f} evaluations in a row, or more. "
        if self.unused_distance > self.latent_spread:
            return found + ("Cause: unused codes lie outside of the latents, where no gradient moves them. Remedy: "
                            "restart_below = 0.1 on the quantizer, or codes of length one (normalize = True).")
        if self.latent_distance > 0.9 * self.latent_spread:
            return found + ("Cause: latents differ by less than their distance from the codes, so that few codes serve "
                            "all. Remedy: restart_below = 0.1 on the quantizer, or fewer dimensions (code_dim).")
        return found + ("Cause: to every latent another code is nearer, and gradients move only the nearest. Remedy: "
                        "restart_below = 0.1 on the quantizer, or a smaller vocabulary.")
